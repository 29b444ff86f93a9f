//! Sampling in int8 keeps every promise that sampling makes about itself, follows the weights, and leaves learning alone.
use super::exactness::{assert_agree, sampled, scores};
use super::reference::{score, widen};
use super::training::step;
use super::*;
use crate::{Decoding, DrawKey, EngineHandle, EngineOptions};
use cohort_model::{DtypeKind, Lora, LoraConfig, Quantization};

fn fresh(spec: &DecoderSpec, path: Path, threads: usize) -> NativeEngine {
    NativeEngine::with_path(spec.clone(), path, threads, 64 << 20).unwrap().sampling(Quantization::Int8)
}

/// Keeps int8 copies alone, with which it scores as well.
fn sampler(spec: &DecoderSpec, path: Path, threads: usize) -> NativeEngine {
    let mut engine = fresh(spec, path, threads).for_sampling();
    engine.import(&random_weights(spec, 1)).unwrap();
    engine
}

fn specs() -> impl Iterator<Item = DecoderSpec> {
    odd_specs().chain([DecoderSpec { tied_embeddings: false, ..odd_spec() }])
}

fn lora(spec: &DecoderSpec) -> Lora {
    let config = LoraConfig { rank: 3, target_modules: vec!["all-linear".into()], ..LoraConfig::default() };
    Lora::of(&config, spec, "test").unwrap()
}

#[test]
fn company_threads_instructions_sharing_and_chunks_change_no_bit() {
    let spec = odd_spec();
    let mut sequences: Vec<_> = (0..29).map(|i| sequence(&spec, 2 + (i * 37) % 90, i as u64)).collect();
    sequences.extend(family(&spec, 70, &[90, 71, 75, 140]));
    let alone: Vec<_> = sequences.iter().map(|s| PackedSequence { shared: 0, ..s.clone() }).collect();
    let want = scores(&mut sampler(&spec, Path::detect(), 1), &alone, false);
    assert_ne!(want, scores(&mut engine(&spec, Path::detect(), 1), &alone, false), "that is f32");
    for (path, threads) in Path::available().into_iter().flat_map(|path| [(path, 1), (path, 2)]) {
        let mut engine = sampler(&spec, path, threads);
        let count = if path == Path::PORTABLE { 3 } else { 33 };
        for batch in [1, 3, 8, 33] {
            for (part, want) in alone[..count].chunks(batch).zip(want.chunks(batch)) {
                assert_eq!(scores(&mut engine, part, false), want[..part.len()], "{path}, {threads} threads, batch {batch}");
            }
        }
        assert_eq!(scores(&mut engine, &sequences[29..], false), want[29..], "{path}, a shared beginning");
        let few = &alone[..count.min(8)];
        for cut in [1, 20, 65] {
            assert_agree(&sampled(&mut engine, few, |index, round| 1 + (index * 31 + round * 17) % cut), &want, "chunks");
        }
    }
}

#[test]
fn an_engine_that_learns_samples_the_samplers_bits_and_learns_its_own() {
    for spec in specs() {
        for dtype in [DtypeKind::F32, DtypeKind::Bf16] {
            let sequences: Vec<_> = (0..4).map(|i| sequence(&spec, 30, i)).collect();
            let of = |engine: NativeEngine| engine.of(dtype);
            let make = || of(fresh(&spec, Path::detect(), 2));
            let (mut whole, mut alone) = (make(), make().for_sampling());
            let mut plain = of(NativeEngine::new(spec.clone(), 2, 64 << 20).unwrap());
            for engine in [&mut whole, &mut plain, &mut alone] {
                engine.import(&random_weights(&spec, 1)).unwrap();
            }
            assert!(plain.is_exact() && !whole.is_exact() && !alone.is_exact());
            assert_ne!(whole.numerics(), plain.numerics());
            for update in 0..2 {
                let what = format!("{:?} {dtype:?}, {update} updates", spec.family);
                let decoded = sampled(&mut whole, &sequences, |_, _| 7);
                assert_eq!(decoded, sampled(&mut alone, &sequences, |_, _| 7), "{what}");
                assert_ne!(decoded, sampled(&mut plain, &sequences, |_, _| 7), "{what}");
                for train in [false, true] {
                    assert_eq!(scores(&mut whole, &sequences, train), scores(&mut plain, &sequences, train), "{what}");
                }
                step(&mut whole, 1);
                step(&mut plain, 1);
                assert_eq!(weight_bits(&whole), weight_bits(&plain), "{what}");
                alone.import(&whole.export().unwrap()).unwrap();
            }
            assert_eq!(alone.digest().unwrap(), whole.digest().unwrap());
        }
    }
}

#[test]
fn an_engine_for_sampling_alone_refuses_the_rest() {
    let spec = odd_spec();
    let mut sampler = sampler(&spec, Path::detect(), 1);
    let batch = PackedBatch { sequences: vec![sequence(&spec, 20, 1)] };
    let refusals = [
        sampler.forward(&batch, true).map(|_| ()),
        sampler.export().map(|_| ()),
        sampler.update(&training::OPTIMIZER, 0.1, 1.0),
        sampler.flip_bit("model.norm.weight", 0, 1),
    ];
    for refusal in refusals {
        assert!(refusal.unwrap_err().to_string().contains("opened for sampling alone"));
    }
}

#[test]
fn adapters_are_sampled_merged() {
    let spec = odd_spec();
    let lora = lora(&spec);
    let sequences: Vec<_> = (0..3).map(|i| sequence(&spec, 40, i)).collect();
    let mut adapted = fresh(&spec, Path::detect(), 2).adapted(&lora, &random_weights(&spec, 1)).unwrap();
    let mut values = lora.initial(&spec, 4);
    values.0.values_mut().flat_map(|tensor| &mut tensor.data).for_each(|x| *x += 0.1);
    let before = sampled(&mut adapted, &sequences, |_, _| 5);
    adapted.import(&values).unwrap();
    let mut merged = fresh(&spec, Path::detect(), 2).for_sampling();
    merged.import(&adapted.merged().unwrap()).unwrap();
    let after = sampled(&mut adapted, &sequences, |_, _| 5);
    assert_ne!(after, before);
    assert_eq!(after, sampled(&mut merged, &sequences, |_, _| 5));
}

#[test]
fn log_probs_stay_near_the_f64_decoder() {
    for spec in specs() {
        let sequences: Vec<_> = (0..8).map(|i| PackedSequence { temperature: 1.0, ..sequence(&spec, 60, i) }).collect();
        let weights = widen(&random_weights(&spec, 1));
        let want: Vec<_> = sequences.iter().flat_map(|s| score(&spec, &weights, s)).map(|(logp, _)| logp).collect();
        let got = sampler(&spec, Path::detect(), 2).forward(&PackedBatch { sequences }, false).unwrap().logp;
        let differences = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs());
        let mean = differences.clone().sum::<f64>() / got.len() as f64;
        let largest = differences.fold(0.0, f64::max);
        // Factors are off by up to 1 / 254 of their group's largest, about a fortieth of a typical one, in sums of 50 to 70
        // terms that make logits of about 2.
        assert!(mean > 1e-4 && mean < 0.03 && largest < 0.25, "{:?}: {mean} {largest}", spec.family);
    }
}

#[tokio::test]
async fn what_is_sampled_in_int8_is_marked() {
    let spec = odd_spec();
    for quantization in [Quantization::None, Quantization::Int8] {
        let weights = random_weights(&spec, 1);
        let spec = spec.clone();
        let make = move || {
            let mut engine = NativeEngine::new(spec, 1, 64 << 20)?.sampling(quantization);
            engine.import(&weights)?;
            Ok(Box::new(engine) as Box<dyn Backend>)
        };
        let engine = EngineHandle::start(make, EngineOptions::default()).unwrap();
        let decoding = Decoding::plain(1.0, 5, DrawKey { seed: 1, group: 2, sample: 3 });
        let done = engine.session().generate(&[1, 2, 3], decoding).await.unwrap();
        assert!(done.spans.len() == 1 && done.spans[0].exact == (quantization == Quantization::None), "{:?}", done.spans);
    }
}
