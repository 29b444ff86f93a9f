//! Bad input is refused with its place and value, and changes nothing (B3).
use super::*;
use crate::{AdamW, EngineError, KvId};

const OPTIMIZER: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };

fn message(result: Result<impl std::fmt::Debug, EngineError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn empty_work_is_fine() {
    let spec = tiny_spec(true);
    let mut engine = engine(&spec, Path::detect(), 2);
    engine.extend(&[], &mut []).unwrap();
    assert_eq!(engine.forward(&PackedBatch::default(), false).unwrap(), crate::Forward::default());
    let untargeted = PackedSequence { targets: vec![], ..sequence(&spec, 5, 1) };
    let result = engine.forward(&PackedBatch { sequences: vec![untargeted] }, true).unwrap();
    assert!(result.logp.is_empty());
    engine.backward(Upstream { d_logp: &[], d_entropy: None }).unwrap();
    assert_eq!(engine.grad_norm().unwrap(), 0.0);
    engine.zero_grad();
    engine.kv_truncate(KvId(99), 3);
    engine.kv_close(KvId(99));
    assert_eq!(engine.kv_len(KvId(99)), 0);
}

#[test]
fn bad_extends_are_refused_and_leave_memories_alone() {
    let spec = tiny_spec(true);
    let mut engine = engine(&spec, Path::detect(), 1);
    let kv = engine.kv_open().unwrap();
    let mut logits = vec![0.0; spec.vocab];
    engine.extend(&[Extend { kv, tokens: &[1, 2] }], &mut logits).unwrap();
    let mut refused = |kv, tokens: &[u32]| message(engine.extend(&[Extend { kv, tokens }], &mut logits));
    assert_eq!(refused(kv, &[]), "item 0: no tokens to append");
    assert_eq!(refused(KvId(7), &[1]), "item 0: key/value memory 7 is not open");
    assert_eq!(refused(kv, &[1, 23]), "item 0: token 23 at 3 is not below the vocabulary of 23");
    assert!(refused(kv, &[1; 39]).contains("41 tokens do not fit the context of 40"));
    let twice = [Extend { kv, tokens: &[1] }, Extend { kv, tokens: &[1] }];
    assert!(message(engine.extend(&twice, &mut [0.0; 46])).contains("occurs twice"));
    assert!(message(engine.extend(&twice[..1], &mut [0.0; 3])).contains("room for 3 logits where 1 rows of 23 are due"));
    assert_eq!(engine.kv_len(kv), 2);
    engine.extend(&[Extend { kv, tokens: &[1; 38] }], &mut logits).unwrap();
    assert_eq!(engine.kv_len(kv), 40);
}

#[test]
fn the_key_value_budget_is_kept() {
    let spec = odd_spec();
    let page = spec.layers * spec.kv_heads * 64 * (10 + 16) * 4;
    let mut engine = NativeEngine::new(spec.clone(), 1, 3 * page).unwrap();
    engine.import(&random_weights(&spec, 1)).unwrap();
    let (a, b) = (engine.kv_open().unwrap(), engine.kv_open().unwrap());
    let mut logits = vec![0.0; 2 * spec.vocab];
    let tokens = vec![1; 130];
    let too_much = [Extend { kv: a, tokens: &tokens[..65] }, Extend { kv: b, tokens: &tokens }];
    assert!(matches!(engine.extend(&too_much, &mut logits), Err(EngineError::Capacity(_))));
    assert_eq!((engine.kv_len(a), engine.kv_len(b)), (0, 0));
    engine.extend(&too_much[1..], &mut logits[..spec.vocab]).unwrap();
    assert!(matches!(engine.extend(&too_much[..1], &mut logits[..spec.vocab]), Err(EngineError::Capacity(_))));
    engine.kv_close(b);
    engine.extend(&too_much[..1], &mut logits[..spec.vocab]).unwrap();
    engine.kv_open().unwrap();
    engine.kv_open().unwrap();
    assert!(message(engine.kv_open()).contains("3 sequences are open"));
}

#[test]
fn bad_batches_are_refused() {
    let spec = tiny_spec(true);
    let mut engine = engine(&spec, Path::detect(), 1);
    let good = sequence(&spec, 5, 1);
    let mut refused = |s: PackedSequence| message(engine.forward(&PackedBatch { sequences: vec![good.clone(), s] }, true));
    assert_eq!(refused(PackedSequence { tokens: vec![], ..good.clone() }), "sequence 1 is empty");
    for targets in [vec![0], vec![5], vec![2, 2], vec![3, 1]] {
        assert!(refused(PackedSequence { targets, ..good.clone() }).contains("targets must ascend from 1 to at most 4"));
    }
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(refused(PackedSequence { temperature, ..good.clone() }).contains("must be above 0"));
    }
    assert!(refused(PackedSequence { tokens: vec![1, 2, 3, 4, 99], ..good.clone() }).contains("token 99 at 4"));
    for (shared, targets, tokens) in [
        (2, vec![1, 3], good.tokens.clone()),
        (5, vec![], good.tokens.clone()),
        (2, vec![3], good.tokens.iter().rev().copied().collect()),
    ] {
        let said = refused(PackedSequence { shared, targets, tokens, temperature: 1.0 });
        assert!(said.contains("of its family's first sequence"), "{said}");
    }
    assert!(refused(sequence(&spec, 41, 1)).contains("41 tokens do not fit the context of 40"));
}

#[test]
fn backward_needs_its_forward() {
    let spec = tiny_spec(true);
    let mut engine = engine(&spec, Path::detect(), 1);
    let batch = PackedBatch { sequences: vec![sequence(&spec, 3, 1)] };
    let up = Upstream { d_logp: &[1.0; 2], d_entropy: None };
    assert!(message(engine.backward(up)).contains("without a forward"));
    engine.forward(&batch, false).unwrap();
    assert!(message(engine.backward(up)).contains("without a forward"));
    engine.forward(&batch, true).unwrap();
    engine.forward(&batch, false).unwrap();
    assert!(
        message(engine.backward(Upstream { d_logp: &[1.0], d_entropy: None })).contains("1 log-probs where the forward had 2")
    );
    let nan = Upstream { d_logp: &[1.0, f32::NAN], d_entropy: None };
    assert!(matches!(engine.backward(nan), Err(EngineError::NonFinite(_))));
    engine.backward(up).unwrap();
    assert!(message(engine.backward(up)).contains("without a forward"));
    engine.forward(&batch, true).unwrap();
    engine.import(&random_weights(&spec, 2)).unwrap();
    assert!(message(engine.backward(up)).contains("without a forward"), "the weights are others now");
}

#[test]
fn gradients_that_are_not_finite_are_refused_untouched() {
    let spec = tiny_spec(true);
    let mut engine = engine(&spec, Path::detect(), 2);
    let batch = PackedBatch { sequences: vec![sequence(&spec, 9, 1)] };
    let good = |engine: &mut NativeEngine, value: f32| {
        engine.forward(&batch, true).unwrap();
        engine.backward(Upstream { d_logp: &[value; 8], d_entropy: None }).unwrap();
    };
    good(&mut engine, 1.0);
    engine.update(&OPTIMIZER, 1e-3, 1.0).unwrap();
    let (weights, moments) = (weight_bits(&engine), engine.optimizer_export().unwrap());
    good(&mut engine, 3e38);
    good(&mut engine, 3e38);
    assert!(!engine.grad_norm().unwrap().is_finite());
    let text = message(engine.update(&OPTIMIZER, 1e-3, 1.0));
    assert!(text.contains("first in model.") && text.contains("nothing was changed"), "{text}");
    assert_eq!((weight_bits(&engine), engine.optimizer_export().unwrap()), (weights, moments));
    engine.zero_grad();
    good(&mut engine, 1.0);
    assert!(message(engine.update(&OPTIMIZER, f64::NAN, 1.0)).contains("learning rate NaN"));
    assert!(matches!(engine.update(&OPTIMIZER, 1e-3, f64::INFINITY), Err(EngineError::Input(_))));
    engine.update(&OPTIMIZER, 1e-3, 1.0).unwrap();
}

#[test]
fn broken_weights_are_refused_and_found() {
    let spec = tiny_spec(true);
    let mut engine = engine(&spec, Path::detect(), 1);
    let before = weight_bits(&engine);
    let mut broken = random_weights(&spec, 3);
    broken.0.get_mut("model.norm.weight").unwrap().data[4] = f32::NAN;
    assert!(message(engine.import(&broken)).contains("model.norm.weight holds a value that is not finite at index 4"));
    broken.0.remove("model.norm.weight");
    assert_eq!(message(engine.import(&broken)), "tensor model.norm.weight is missing");
    assert!(message(engine.optimizer_import(&broken, &broken, 1)).contains("model.norm.weight is missing"));
    assert_eq!(weight_bits(&engine), before);
    // An exponent bit that makes a weight of the last norm infinite.
    let weight = engine.export().unwrap().0["model.norm.weight"].data[0].to_bits();
    (23..31).filter(|bit| weight >> bit & 1 == 0).for_each(|bit| engine.flip_bit("model.norm.weight", 0, bit).unwrap());
    let kv = engine.kv_open().unwrap();
    let result = engine.extend(&[Extend { kv, tokens: &[1, 2] }], &mut vec![0.0; spec.vocab]);
    assert!(matches!(result, Err(EngineError::NonFinite(_))));
    assert_eq!(engine.kv_len(kv), 0);
    let batch = PackedBatch { sequences: vec![sequence(&spec, 9, 1)] };
    assert!(matches!(engine.forward(&batch, true), Err(EngineError::NonFinite(_))));
    assert!(message(engine.flip_bit("x", 0, 0)).contains("tensor x is not part"));
    assert!(message(engine.flip_bit("model.norm.weight", 10, 0)).contains("element 10"));
    assert!(message(engine.flip_bit("model.norm.weight", 0, 32)).contains("bit 32"));
}

#[test]
fn impossible_architectures_are_refused() {
    for spec in [
        DecoderSpec { kv_heads: 5, ..odd_spec() },
        DecoderSpec { head_dim: 7, ..odd_spec() },
        DecoderSpec { vocab: 0, ..odd_spec() },
        DecoderSpec { rope_theta: 0.0, ..odd_spec() },
    ] {
        assert!(matches!(NativeEngine::new(spec, 1, 0), Err(EngineError::Input(_))));
    }
}
