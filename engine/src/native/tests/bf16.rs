//! bf16 keeps every promise of f32, stays near the exact decoder, and rounds nothing that adds up.
use super::exactness::{assert_agree, sampled, scores};
use super::gradients::upstream;
use super::reference::{score, widen};
use super::training::step;
use super::*;
use cohort_model::DtypeKind;

fn bf16(spec: &DecoderSpec, path: Path, threads: usize) -> NativeEngine {
    let mut engine = NativeEngine::with_path(spec.clone(), path, threads, 64 << 20).unwrap().of(DtypeKind::Bf16);
    engine.import(&random_weights(spec, 1)).unwrap();
    engine
}

/// Paths worth their time: the portable one does a few sequences only.
fn machines() -> impl Iterator<Item = (Path, usize)> {
    Path::available().into_iter().flat_map(|path| [(path, 1), (path, 2)])
}

#[test]
fn company_threads_instructions_sharing_and_chunks_change_no_bit() {
    let spec = odd_spec();
    let mut sequences: Vec<_> = (0..29).map(|i| sequence(&spec, 2 + (i * 37) % 90, i as u64)).collect();
    sequences.extend(family(&spec, 70, &[90, 71, 75, 140]));
    let alone: Vec<_> = sequences.iter().map(|s| PackedSequence { shared: 0, ..s.clone() }).collect();
    let want = scores(&mut bf16(&spec, Path::detect(), 1), &alone, false);
    assert_ne!(want, scores(&mut engine(&spec, Path::detect(), 1), &alone, false), "that is f32");
    for (path, threads) in machines() {
        let mut engine = bf16(&spec, path, threads);
        let count = if path == Path::PORTABLE { 3 } else { 33 };
        for batch in [1, 3, 8, 33] {
            for (part, want) in alone[..count].chunks(batch).zip(want.chunks(batch)) {
                assert_eq!(scores(&mut engine, part, batch == 3), want[..part.len()], "{path}, {threads} threads, batch {batch}");
            }
        }
        assert_eq!(scores(&mut engine, &sequences[29..], true), want[29..], "{path}, a shared beginning");
        let few = &alone[..count.min(8)];
        for cut in [1, 20, 65] {
            assert_agree(&sampled(&mut engine, few, |index, round| 1 + (index * 31 + round * 17) % cut), &want, "chunks");
        }
    }
}

#[test]
fn an_engine_for_sampling_alone_gives_the_same_bits_and_refuses_the_rest() {
    let spec = odd_spec();
    let sequences: Vec<_> = (0..4).map(|i| sequence(&spec, 30, i)).collect();
    let mut sampler = NativeEngine::new(spec.clone(), 2, 64 << 20).unwrap().of(DtypeKind::Bf16).for_sampling();
    assert!(sampler.digest().is_err(), "nothing was imported");
    sampler.import(&random_weights(&spec, 1)).unwrap();
    let mut whole = bf16(&spec, Path::detect(), 2);
    assert_eq!(scores(&mut sampler, &sequences, false), scores(&mut whole, &sequences, false));
    assert_eq!(sampled(&mut sampler, &sequences, |_, _| 7), sampled(&mut whole, &sequences, |_, _| 7));
    assert_eq!(sampler.digest().unwrap(), random_weights(&spec, 1).digest());
    let batch = PackedBatch { sequences };
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
fn log_probs_and_gradients_stay_near_the_f64_decoder() {
    for spec in [tiny_spec(true), tiny_spec(false), odd_spec()] {
        let batch = gradients::batch(&spec);
        let weights = widen(&random_weights(&spec, 1));
        let want: Vec<_> = batch.sequences.iter().flat_map(|s| score(&spec, &weights, s)).collect();
        let up = upstream(batch.targets());
        let mut exact = engine(&spec, Path::detect(), 2);
        let mut engine = bf16(&spec, Path::detect(), 2);
        for engine in [&mut exact, &mut engine] {
            let got = engine.forward(&batch, true).unwrap();
            // Each factor is off by up to 2^-9 of itself; two blocks' products of 10 to 70 terms add to logits of about 2.
            for (logp, want) in got.logp.iter().zip(&want) {
                assert!((f64::from(*logp) - want.0).abs() < 0.1, "{logp}, not {}", want.0);
            }
            engine.backward(Upstream { d_logp: &up.0, d_entropy: Some(&up.1) }).unwrap();
        }
        // f32's gradients are within 1e-3 of the numerical ones (`gradients`); bf16's are compared with them as a whole,
        // tensor by tensor: rounding errors of 2^-9 a factor, through two blocks both ways.
        for ((name, got), want) in engine.gradients().unwrap().0.iter().zip(exact.gradients().unwrap().0.values()) {
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let difference = norm(&mut got.data.iter().zip(&want.data).map(|(a, b)| f64::from(a - b)));
            let size = norm(&mut want.data.iter().map(|v| f64::from(*v)));
            assert!(difference < 0.05 * size, "{name}: off by {difference} of {size}");
            assert!(difference > 0.0, "{name} was not computed in bf16");
        }
    }
}

#[test]
fn updates_have_the_same_bits_on_every_machine() {
    let spec = DecoderSpec { max_context: 100, ..tiny_spec(true) };
    let mut want = None;
    for (path, threads) in machines() {
        let mut engine = bf16(&spec, path, threads);
        (0..2).for_each(|seed| step(&mut engine, seed));
        let got = weight_bits(&engine);
        assert_eq!(want.get_or_insert_with(|| got.clone()), &got, "{path}, {threads} threads");
    }
}

#[test]
fn steps_too_small_for_bf16_add_up_in_the_parameters() {
    let spec = tiny_spec(true);
    let mut engine = bf16(&DecoderSpec { max_context: 100, ..spec.clone() }, Path::detect(), 1);
    let name = "model.layers.0.mlp.up_proj.weight";
    let start = engine.export().unwrap().0[name].data.clone();
    let batch = PackedBatch { sequences: vec![sequence(&spec, 30, 8)] };
    let mean = |engine: &mut NativeEngine| engine.forward(&batch, true).unwrap().logp.iter().sum::<f32>() / 29.0;
    let before = mean(&mut engine);
    for _ in 0..200 {
        mean(&mut engine);
        engine.backward(Upstream { d_logp: &[-1.0 / 29.0; 29], d_entropy: None }).unwrap();
        engine.update(&training::OPTIMIZER, 1e-5, 1.0).unwrap();
    }
    // One step is 1e-5, an eighth of bf16's spacing at 0.02 and less; rounded after each step, nothing would ever move.
    let after = engine.export().unwrap().0[name].data.clone();
    let moved = start.iter().zip(&after).filter(|(a, b)| (*a - *b).abs() > 1e-4).count();
    assert!(moved > start.len() / 4, "{moved} of {}", start.len());
    assert!(mean(&mut engine) > before);
    let mut fresh = NativeEngine::new(engine.spec().clone(), 2, 1 << 20).unwrap().of(DtypeKind::Bf16);
    fresh.import(&engine.export().unwrap()).unwrap();
    assert_eq!(mean(&mut fresh).to_bits(), mean(&mut engine).to_bits(), "what is read is what was rounded last");
}
