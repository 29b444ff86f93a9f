//! B2 and the optimizer's state: equal inputs in equal order give equal weights, saved and resumed or not.
use super::*;
use crate::AdamW;
use cohort_model::DtypeKind;

pub(super) const OPTIMIZER: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };

pub(super) fn step(engine: &mut NativeEngine, seed: u64) {
    let spec = engine.spec().clone();
    let sequences: Vec<_> = (0..4).map(|i| sequence(&spec, 5 + 20 * i as usize, seed * 10 + i)).collect();
    let batch = PackedBatch { sequences };
    let targets = engine.forward(&batch, true).unwrap().logp.len();
    let up = vec![-1.0 / targets as f32; targets];
    engine.backward(Upstream { d_logp: &up, d_entropy: None }).unwrap();
    let norm = engine.grad_norm().unwrap();
    assert!(norm > 0.0);
    engine.update(&OPTIMIZER, 1e-2, 1.0 / norm.max(1.0)).unwrap();
    assert_eq!(engine.grad_norm().unwrap(), 0.0);
}

#[test]
fn updates_have_the_same_bits_on_every_machine() {
    for spec in odd_specs() {
        let mut want = None;
        for (path, threads) in
            Path::available().into_iter().filter(|p| *p != Path::PORTABLE).flat_map(|p| [(p, 1), (p, 2), (p, 3)])
        {
            let mut engine = engine(&spec, path, threads);
            (0..3).for_each(|seed| step(&mut engine, seed));
            let got = weight_bits(&engine);
            assert_eq!(want.get_or_insert_with(|| got.clone()), &got, "{path}, {threads} threads");
        }
    }
}

#[test]
fn the_portable_path_trains_to_the_same_bits() {
    let spec = tiny_spec(true);
    let train = |path| {
        let mut engine = engine(&DecoderSpec { max_context: 100, ..spec.clone() }, path, 1);
        step(&mut engine, 1);
        weight_bits(&engine)
    };
    assert_eq!(train(Path::PORTABLE), train(Path::detect()));
}

#[test]
fn a_saved_and_resumed_run_goes_on_to_the_same_bits() {
    for spec in odd_specs() {
        let mut first = engine(&spec, Path::detect(), 2);
        step(&mut first, 1);
        let (m, v, updates) = first.optimizer_export().unwrap();
        let mut second = engine(&spec, Path::detect(), 1);
        second.import(&first.export().unwrap()).unwrap();
        second.optimizer_import(&m, &v, updates).unwrap();
        assert_eq!(second.optimizer_export().unwrap(), (m, v, 1));
        step(&mut first, 2);
        step(&mut second, 2);
        assert_eq!(weight_bits(&first), weight_bits(&second));
        assert_eq!(first.optimizer_export().unwrap(), second.optimizer_export().unwrap());
    }
}

#[test]
fn training_raises_what_it_is_told_to_raise() {
    let spec = odd_spec();
    let mut engine = engine(&spec, Path::detect(), 2);
    let batch = PackedBatch { sequences: vec![sequence(&spec, 60, 8)] };
    let mean = |engine: &mut NativeEngine| {
        let logp = engine.forward(&batch, true).unwrap().logp;
        logp.iter().sum::<f32>() / logp.len() as f32
    };
    let before = mean(&mut engine);
    for _ in 0..30 {
        mean(&mut engine);
        engine.backward(Upstream { d_logp: &[-1.0 / 59.0; 59], d_entropy: None }).unwrap();
        engine.update(&OPTIMIZER, 3e-3, 1.0).unwrap();
    }
    let after = mean(&mut engine);
    assert!(before < -4.0 && after > -0.5, "{before} to {after}");
}

#[test]
fn padding_of_packed_matrices_stays_zero() {
    for spec in odd_specs() {
        let mut engine = engine(&spec, Path::detect(), 2);
        (0..2).for_each(|seed| step(&mut engine, seed));
        let exported = engine.export().unwrap();
        let mut fresh = NativeEngine::new(spec, 1, 1 << 20).unwrap();
        fresh.import(&exported).unwrap();
        assert_eq!(bits(engine.weights.arena().unwrap()), bits(fresh.weights.arena().unwrap()));
    }
}

#[test]
fn a_step_without_gradients_only_decays() {
    let spec = tiny_spec(true);
    let mut engine = engine(&spec, Path::detect(), 1);
    assert_eq!(engine.grad_norm().unwrap(), 0.0);
    engine.update(&AdamW { weight_decay: 0.0, ..OPTIMIZER }, 0.1, 1.0).unwrap();
    assert_eq!(engine.export().unwrap(), random_weights(&spec, 1));
    engine.update(&OPTIMIZER, 0.1, 1.0).unwrap();
    let (now, before) = (engine.export().unwrap(), random_weights(&spec, 1));
    assert_eq!(now.0["model.norm.weight"], before.0["model.norm.weight"], "vectors do not decay");
    assert_ne!(now.0["model.embed_tokens.weight"], before.0["model.embed_tokens.weight"]);
}

#[test]
fn activations_computed_again_are_the_same_bits() {
    for spec in odd_specs() {
        for dtype in [DtypeKind::F32, DtypeKind::Bf16] {
            let train = |recompute: bool| {
                let mut engine = NativeEngine::new(spec.clone(), 2, 1 << 20).unwrap().of(dtype).recomputing(recompute);
                engine.import(&random_weights(&spec, 1)).unwrap();
                let mut sequences = vec![sequence(&spec, 31, 1)];
                sequences.extend(family(&spec, 9, &[20, 12]));
                let batch = PackedBatch { sequences };
                // The second pass is smaller than the first: buffers are larger than needed.
                for batch in [batch.clone(), PackedBatch { sequences: batch.sequences[..1].to_vec() }] {
                    let targets = engine.forward(&batch, true).unwrap().logp.len();
                    let up: Vec<f32> = (0..targets).map(|i| 0.1 - i as f32 * 0.01).collect();
                    engine.backward(Upstream { d_logp: &up, d_entropy: None }).unwrap();
                }
                engine.gradients().unwrap()
            };
            assert_eq!(train(true), train(false), "{dtype:?}");
        }
    }
}
