//! Adapters: the merged model's bits, gradients against the f64 decoder, and that nothing else is trained.
use super::reference::{Weights, score, widen};
use super::training::{OPTIMIZER, step};
use super::*;
use cohort_model::lora::Target;
use cohort_model::{Lora, LoraConfig};

pub(super) fn lora(spec: &DecoderSpec, modules: &[&str]) -> Lora {
    let target_modules = modules.iter().map(|name| (*name).to_owned()).collect();
    Lora::of(&LoraConfig { rank: 3, alpha: 6.0, target_modules, ..LoraConfig::default() }, spec, "test").unwrap()
}

/// Adapters as training leaves them: B is not zero.
pub(super) fn values(spec: &DecoderSpec, lora: &Lora) -> WeightSet {
    let mut next = noise(99);
    let mut set = lora.initial(spec, 4);
    for tensor in set.0.values_mut() {
        tensor.data.iter_mut().for_each(|x| *x += 0.3 * next() as f32);
    }
    set
}

fn adapted(spec: &DecoderSpec, lora: &Lora, path: Path, threads: usize) -> NativeEngine {
    let engine = NativeEngine::with_path(spec.clone(), path, threads, 64 << 20).unwrap();
    engine.adapted(lora, &random_weights(spec, 1)).unwrap()
}

fn families() -> impl Iterator<Item = DecoderSpec> {
    odd_specs().filter(|spec| spec.family != Family::Gpt2)
}

/// Log-probs of the forward and logits of a prompt fed in two pieces.
fn computed(engine: &mut NativeEngine) -> (Vec<u32>, Vec<u32>) {
    let spec = engine.spec().clone();
    let sequences: Vec<_> = (0..3).map(|i| sequence(&spec, 30 + 20 * i as usize, i)).collect();
    let logp = bits(&engine.forward(&PackedBatch { sequences: sequences.clone() }, false).unwrap().logp);
    let kv = engine.kv_open().unwrap();
    let mut logits = vec![0.0; spec.vocab];
    for part in [&sequences[2].tokens[..41], &sequences[2].tokens[41..]] {
        engine.extend(&[Extend { kv, tokens: part }], &mut logits).unwrap();
    }
    engine.kv_close(kv);
    (logp, bits(&logits))
}

#[test]
fn an_adapter_beside_its_model_gives_the_merged_models_bits() {
    for spec in families() {
        let lora = lora(&spec, &["all-linear"]);
        for dtype in [cohort_model::DtypeKind::F32, cohort_model::DtypeKind::Bf16] {
            let fresh = || NativeEngine::with_path(spec.clone(), Path::detect(), 2, 64 << 20).unwrap().of(dtype);
            let mut frozen = fresh();
            frozen.import(&random_weights(&spec, 1)).unwrap();
            let mut engine = fresh().adapted(&lora, &random_weights(&spec, 1)).unwrap();
            // Fresh adapters are the frozen model.
            engine.import(&lora.initial(&spec, 7)).unwrap();
            assert_eq!(computed(&mut engine), computed(&mut frozen), "{:?} {dtype:?}", spec.family);
            engine.import(&values(&spec, &lora)).unwrap();
            let mut merged = fresh();
            merged.import(&engine.merged().unwrap()).unwrap();
            let want = computed(&mut merged);
            assert_ne!(want, computed(&mut frozen));
            assert_eq!(computed(&mut engine), want, "{:?} {dtype:?}", spec.family);
        }
    }
}

#[test]
fn merging_has_the_same_bits_on_every_machine() {
    let spec = odd_spec();
    let lora = lora(&spec, &["q_proj", "down_proj"]);
    let mut want = None;
    for (path, threads) in Path::available().into_iter().flat_map(|path| [(path, 1), (path, 3)]) {
        let mut engine = adapted(&spec, &lora, path, threads);
        engine.import(&values(&spec, &lora)).unwrap();
        let merged = engine.merged().unwrap();
        assert_eq!(want.get_or_insert_with(|| merged.clone()), &merged, "{path}, {threads} threads");
    }
}

/// The f64 weights with the adapters in them.
fn merge(spec: &DecoderSpec, lora: &Lora, frozen: &Weights, adapters: &Weights) -> Weights {
    let mut out = frozen.clone();
    for (layer, target) in (0..spec.layers).flat_map(|layer| lora.targets.iter().map(move |t| (layer, *t))) {
        let (rows, inner) = target.shape(spec);
        let [a, b] = target.adapters(layer).map(|name| &adapters[&name]);
        let weight = out.get_mut(&target.weight(layer)).unwrap();
        for (n, k) in (0..rows).flat_map(|n| (0..inner).map(move |k| (n, k))) {
            let sum: f64 = (0..lora.rank).map(|j| b[n * lora.rank + j] * a[j * inner + k]).sum();
            weight[n * inner + k] += f64::from(lora.scale()) * sum;
        }
    }
    out
}

#[test]
fn every_adapter_gets_its_numerical_gradient() {
    for family in [Family::Llama, Family::Qwen2, Family::Qwen3] {
        let spec = DecoderSpec { family, ..tiny_spec(true) };
        let lora = lora(&spec, &["all-linear"]);
        let batch = PackedBatch { sequences: [vec![sequence(&spec, 6, 1)], family_of(&spec)].concat() };
        let mut next = noise(77);
        let up: Vec<f32> = (0..batch.targets()).map(|_| next() as f32).collect();
        let mut engine = adapted(&spec, &lora, Path::detect(), 2);
        engine.import(&values(&spec, &lora)).unwrap();
        engine.forward(&batch, true).unwrap();
        engine.backward(Upstream { d_logp: &up, d_entropy: None }).unwrap();
        let gradients = engine.gradients().unwrap();
        gradients.fits(&lora.tensors(&spec)).unwrap();

        let (frozen, mut adapters) = (widen(&random_weights(&spec, 1)), widen(&values(&spec, &lora)));
        let loss = |adapters: &Weights| {
            let weights = merge(&spec, &lora, &frozen, adapters);
            let scores = batch.sequences.iter().flat_map(|s| score(&spec, &weights, s));
            scores.zip(&up).map(|((logp, _), up)| logp * f64::from(*up)).sum::<f64>()
        };
        for (name, tensor) in &gradients.0 {
            // Every third of them: the others are made by the same loops.
            let some: Vec<usize> = (0..tensor.data.len()).step_by(3).collect();
            let slope = |index: usize| {
                let mut at = |shift: f64| {
                    adapters.entry(name.clone()).and_modify(|values| values[index] += shift);
                    loss(&adapters)
                };
                let (above, below) = (at(1e-4), at(-2e-4));
                at(1e-4);
                (above - below) / 2e-4
            };
            let numeric: Vec<f64> = some.iter().copied().map(slope).collect();
            let scale = numeric.iter().fold(0.0, |most: f64, g| most.max(g.abs()));
            assert!(scale > 1e-6, "{name} has no gradient to compare");
            for (index, want) in some.into_iter().zip(numeric) {
                let got = f64::from(tensor.data[index]);
                assert!((got - want).abs() < 1e-3 * scale, "{family:?} {name}[{index}]: {got}, not {want}");
            }
        }
    }
}

fn family_of(spec: &DecoderSpec) -> Vec<PackedSequence> {
    family(spec, 3, &[5, 6])
}

#[test]
fn only_adapters_are_trained_saved_and_resumed() {
    let spec = odd_spec();
    let lora = lora(&spec, &["q_proj", "v_proj", "up_proj"]);
    let mut engine = adapted(&spec, &lora, Path::detect(), 2);
    engine.import(&lora.initial(&spec, 3)).unwrap();
    let before = (engine.merged().unwrap(), engine.export().unwrap());
    step(&mut engine, 1);
    let (merged, exported) = (engine.merged().unwrap(), engine.export().unwrap());
    exported.fits(&lora.tensors(&spec)).unwrap();
    assert_eq!(engine.digest().unwrap(), exported.digest());
    assert_ne!(exported, before.1);
    for (name, tensor) in &merged.0 {
        let has_adapter = (0..spec.layers).any(|layer| lora.targets.iter().any(|target| target.weight(layer) == *name));
        assert_eq!(*tensor != before.0.0[name], has_adapter, "{name}");
    }
    // Resumed with other numbers of threads, it goes on to the same bits.
    let (first, second, updates) = engine.optimizer_export().unwrap();
    first.fits(&lora.tensors(&spec)).unwrap();
    let mut resumed = adapted(&spec, &lora, Path::detect(), 1);
    resumed.import(&exported).unwrap();
    resumed.optimizer_import(&first, &second, updates).unwrap();
    step(&mut engine, 2);
    step(&mut resumed, 2);
    assert_eq!(engine.export().unwrap(), resumed.export().unwrap());
    assert_eq!(engine.merged().unwrap(), resumed.merged().unwrap());
}

#[test]
fn the_same_step_has_the_same_bits_on_every_machine() {
    let spec = odd_spec();
    let lora = lora(&spec, &["all-linear"]);
    let mut want = None;
    for (path, threads) in Path::available().into_iter().filter(|p| *p != Path::PORTABLE).flat_map(|p| [(p, 1), (p, 3)]) {
        let mut engine = adapted(&spec, &lora, path, threads);
        engine.import(&values(&spec, &lora)).unwrap();
        step(&mut engine, 1);
        let got = engine.export().unwrap();
        assert_eq!(want.get_or_insert_with(|| got.clone()), &got, "{path}, {threads} threads");
    }
}

#[test]
fn sets_of_other_tensors_are_refused() {
    let spec = odd_spec();
    let lora = lora(&spec, &["q_proj"]);
    let mut engine = adapted(&spec, &lora, Path::detect(), 1);
    let whole = random_weights(&spec, 1);
    let [a, _] = Target::Query.adapters(0);
    assert!(engine.import(&whole).unwrap_err().to_string().contains("lora_A.weight is missing"));
    let mut broken = lora.initial(&spec, 1);
    broken.0.get_mut(&a).unwrap().data[2] = f32::NAN;
    assert!(engine.import(&broken).unwrap_err().to_string().contains("not finite at index 2"));
    engine.flip_bit(&a, 1, 3).unwrap();
    assert!(engine.update(&OPTIMIZER, f64::NAN, 1.0).is_err());
}

#[test]
fn dropped_inputs_are_those_of_their_keys_in_any_company() {
    let spec = odd_spec();
    let lora = Lora { dropout: 0.3, ..lora(&spec, &["all-linear"]) };
    let mut engine = adapted(&spec, &lora, Path::detect(), 2);
    engine.import(&values(&spec, &lora)).unwrap();
    assert!(engine.draws());
    let sequences: Vec<_> = (0..4).map(|i| sequence(&spec, 20 + 9 * i as usize, i)).collect();
    let keys = [5, 6, 7, 8];
    let mut run = |which: &[usize], train, keyed: bool| {
        if keyed {
            engine.key_draws(&which.iter().map(|i| keys[*i]).collect::<Vec<_>>());
        }
        let batch = PackedBatch { sequences: which.iter().map(|i| sequences[*i].clone()).collect() };
        bits(&engine.forward(&batch, train).unwrap().logp)
    };
    let plain = run(&[0, 1, 2, 3], false, false);
    assert_eq!(run(&[0, 1, 2, 3], true, false), plain, "without keys nothing is dropped");
    let all = run(&[0, 1, 2, 3], true, true);
    assert_ne!(all, plain);
    assert_eq!(run(&[0, 1, 2, 3], false, true), plain, "scoring drops nothing");
    let apart = [run(&[0], true, true), run(&[1], true, true), run(&[2, 3], true, true)].concat();
    assert_eq!(apart, all);
    engine.key_draws(&[1]);
    let two = PackedBatch { sequences: sequences[..2].to_vec() };
    assert!(engine.forward(&two, true).unwrap_err().to_string().contains("1 keys of draws for 2 sequences"));
}

/// Along each adapter's own gradient the loss climbs by its norm.
#[test]
fn gradients_are_the_slopes_of_the_loss_with_dropped_inputs() {
    for family in [Family::Llama, Family::Qwen3] {
        let spec = DecoderSpec { family, ..tiny_spec(false) };
        let lora = Lora { dropout: 0.4, ..lora(&spec, &["all-linear"]) };
        let batch = PackedBatch { sequences: vec![sequence(&spec, 9, 1), sequence(&spec, 12, 2)] };
        let up: Vec<f32> = (0..batch.targets()).map(|i| (i as f32).sin()).collect();
        let mut engine = adapted(&spec, &lora, Path::detect(), 2);
        let base = values(&spec, &lora);
        let forward = |engine: &mut NativeEngine, set: &WeightSet| {
            engine.import(set).unwrap();
            engine.key_draws(&[11, 12]);
            engine.forward(&batch, true).unwrap().logp
        };
        forward(&mut engine, &base);
        engine.backward(Upstream { d_logp: &up, d_entropy: None }).unwrap();
        let gradients = engine.gradients().unwrap();
        for (name, gradient) in &gradients.0 {
            let norm = gradient.data.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let step = 4e-3 / norm;
            let mut at = |sign: f64| {
                let mut moved = base.clone();
                let tensor = moved.0.get_mut(name).unwrap();
                tensor.data.iter_mut().zip(&gradient.data).for_each(|(w, g)| *w += (sign * step * f64::from(*g)) as f32);
                let logp = forward(&mut engine, &moved);
                logp.iter().zip(&up).map(|(logp, up)| f64::from(*logp) * f64::from(*up)).sum::<f64>()
            };
            let slope = (at(0.5) - at(-0.5)) / (step * norm);
            assert!((slope - norm).abs() < 0.01 * norm + 2e-3, "{family:?} {name}: slope {slope}, gradient's norm {norm}");
        }
    }
}

#[test]
fn activations_computed_again_drop_the_same_inputs() {
    let spec = odd_spec();
    let lora = Lora { dropout: 0.3, ..lora(&spec, &["all-linear"]) };
    let batch = PackedBatch { sequences: (0..3).map(|i| sequence(&spec, 25, i)).collect() };
    let gradients = |recompute: bool| {
        let engine = NativeEngine::new(spec.clone(), 2, 1 << 20).unwrap().recomputing(recompute);
        let mut engine = engine.adapted(&lora, &random_weights(&spec, 1)).unwrap();
        engine.import(&values(&spec, &lora)).unwrap();
        engine.key_draws(&[1, 2, 3]);
        let targets = engine.forward(&batch, true).unwrap().logp.len();
        engine.backward(Upstream { d_logp: &vec![-0.1; targets], d_entropy: None }).unwrap();
        engine.gradients().unwrap()
    };
    assert_eq!(gradients(true), gradients(false));
}
