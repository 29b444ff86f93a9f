//! Training on what sampling computed: the bits of a pass that computes everything, and no trust in what it cannot know.
use super::training::OPTIMIZER;
use super::*;
use crate::{KvId, Scored};
use cohort_kernels::logprob::row;
use cohort_model::DtypeKind;

const BUDGET: usize = 64 << 20;
const TEMPERATURE: f32 = 0.75;

/// Samples "tokens" that are given beforehand, as the engine's driver does: in two pieces and then one by one, noting each.
fn sampled(engine: &mut NativeEngine, kv: KvId, tokens: &[u32], from: usize) {
    let vocab = engine.spec().vocab;
    let mut logits = vec![0.0; vocab];
    let start = engine.kv_len(kv);
    let mut at = start;
    let mut feed = |engine: &mut NativeEngine, end: usize| {
        engine.extend(&[Extend { kv, tokens: &tokens[at..end] }], &mut logits).unwrap();
        at = end;
        let stats = row(Path::detect(), &logits, TEMPERATURE);
        let token = tokens[end];
        engine.note_scored(&[(kv, Scored { token, logp: stats.logp(logits[token as usize]), stats })]);
    };
    if from > start + 2 {
        feed(engine, start + 2);
    }
    (from..tokens.len()).for_each(|end| feed(engine, end));
}

/// A family whose first `prompt` tokens are common, all others targets.
fn group(spec: &DecoderSpec, prompt: u32, lengths: &[usize]) -> Vec<PackedSequence> {
    let mut all = family(spec, prompt, lengths);
    for s in &mut all {
        (s.temperature, s.targets) = (TEMPERATURE, (prompt..s.tokens.len() as u32).collect());
    }
    all
}

/// Samples a group: the first from nothing, the others from a fork of its prompt but for the last token.
fn sample_group(engine: &mut NativeEngine, group: &[PackedSequence], prompt: usize) -> Vec<KvId> {
    let first = engine.kv_open().unwrap();
    sampled(engine, first, &group[0].tokens, prompt);
    let mut all = vec![first];
    for member in &group[1..] {
        let kv = engine.kv_fork(first, prompt - 1).unwrap();
        sampled(engine, kv, &member.tokens, prompt);
        all.push(kv);
    }
    all
}

/// Log-probs, entropies and gradients of a training pass, and the rows that were not computed for it.
fn learned(engine: &mut NativeEngine, sequences: &[PackedSequence]) -> (Vec<u32>, Vec<u32>, WeightSet, usize) {
    let forward = engine.forward(&PackedBatch { sequences: sequences.to_vec() }, true).unwrap();
    let up: Vec<f32> = (0..forward.logp.len()).map(|i| 0.1 - i as f32 * 0.01).collect();
    let down: Vec<f32> = up.iter().map(|d| d * 0.3).collect();
    engine.zero_grad();
    engine.backward(Upstream { d_logp: &up, d_entropy: Some(&down) }).unwrap();
    (bits(&forward.logp), bits(&forward.entropy), engine.gradients().unwrap(), forward.recalled)
}

fn recording(spec: &DecoderSpec, dtype: DtypeKind, bytes: usize) -> NativeEngine {
    let mut engine = NativeEngine::new(spec.clone(), 2, 8 << 20).unwrap().of(dtype).recording(bytes);
    engine.import(&random_weights(spec, 1)).unwrap();
    engine
}

#[test]
fn gradients_have_the_bits_of_a_pass_that_computes_all() {
    for spec in odd_specs() {
        for dtype in [DtypeKind::F32, DtypeKind::Bf16] {
            let groups = [group(&spec, 9, &[20, 12, 10]), group(&spec, 70, &[75, 90])];
            let all = groups.concat();
            let mut plain = recording(&spec, dtype, 0);
            let want = learned(&mut plain, &all);
            assert_eq!(want.3, 0);
            let mut engine = recording(&spec, dtype, BUDGET);
            for (group, prompt) in groups.iter().zip([9, 70]) {
                let memories = sample_group(&mut engine, group, prompt);
                // Some are still open when the learner comes.
                memories.into_iter().skip(1).for_each(|kv| engine.kv_close(kv));
            }
            for part in [&all[..], &groups[1], &groups[0]] {
                let (want, got) = (learned(&mut plain, part), learned(&mut engine, part));
                assert_eq!((&got.0, &got.1, &got.2), (&want.0, &want.1, &want.2), "{:?} {dtype:?}", spec.family);
                let rows: usize = part.iter().map(|s| s.tokens.len() - s.shared as usize - 1).sum();
                assert_eq!(got.3, rows, "every row was there");
            }
        }
    }
}

#[test]
fn adapters_learn_from_it_too() {
    let spec = odd_spec();
    let lora = lora::lora(&spec, &["all-linear"]);
    let group = group(&spec, 9, &[20, 12]);
    let adapted = |bytes| {
        let engine = NativeEngine::new(spec.clone(), 2, 8 << 20).unwrap().recording(bytes);
        let mut engine = engine.adapted(&lora, &random_weights(&spec, 1)).unwrap();
        engine.import(&lora::values(&spec, &lora)).unwrap();
        sample_group(&mut engine, &group, 9);
        learned(&mut engine, &group)
    };
    let (got, want) = (adapted(BUDGET), adapted(0));
    assert_eq!((&got.0, &got.1, &got.2), (&want.0, &want.1, &want.2));
    assert_eq!((got.3, want.3), (19 + 2, 0));
}

#[test]
fn a_change_of_weights_ends_it() {
    let spec = odd_spec();
    let group = group(&spec, 9, &[20, 12]);
    type Change = fn(&mut NativeEngine);
    let changes: [Change; 3] = [
        |engine| engine.import(&random_weights(&odd_spec(), 2)).unwrap(),
        |engine| engine.flip_bit("model.norm.weight", 3, 22).unwrap(),
        |engine| engine.update(&OPTIMIZER, 1e-2, 1.0).unwrap(),
    ];
    for change in changes {
        let mut engine = recording(&spec, DtypeKind::F32, BUDGET);
        let memories = sample_group(&mut engine, &group, 9);
        let before = learned(&mut engine, &group);
        change(&mut engine);
        let after = learned(&mut engine, &group);
        assert_eq!((before.3, after.3), (21, 0));
        assert_ne!(before.0, after.0);
        // Memories that go on with stale keys are not taken for exact ones.
        sampled(&mut engine, memories[0], &[&group[0].tokens[..], &[5]].concat(), 20);
        assert_eq!(learned(&mut engine, &group[..1]).3, 0);
    }
}

#[test]
fn what_is_not_all_there_is_computed() {
    let spec = odd_spec();
    let group = group(&spec, 9, &[20, 12]);
    let mut engine = recording(&spec, DtypeKind::F32, BUDGET);
    let want = learned(&mut engine, &group);
    let kv = sample_group(&mut engine, &group[..1], 9)[0];
    let got = learned(&mut engine, &group);
    assert_eq!((&got.0, &got.2, got.3), (&want.0, &want.2, 0), "the second sequence was not sampled here");
    assert_eq!(learned(&mut engine, &group[..1]).3, 19);
    engine.kv_truncate(kv, 15);
    assert_eq!(learned(&mut engine, &group[..1]).3, 0);
    engine.kv_close(kv);
    let small = |rows: usize| recording(&spec, DtypeKind::F32, rows * 4 * 1000);
    let fits = |mut engine: NativeEngine| {
        sample_group(&mut engine, &group, 9);
        learned(&mut engine, &group).3
    };
    assert_eq!(
        (fits(small(40)), fits(small(5))),
        (21, 0),
        "a row of this model takes less than 1,000 values, and 21 rows are wanted"
    );
    sample_group(&mut engine, &group, 9);
    engine.forget_sampling();
    assert_eq!(learned(&mut engine, &group).3, 0);
}

#[test]
fn another_token_or_temperature_than_was_drawn_is_scored_anew() {
    let spec = odd_spec();
    let mut plain = recording(&spec, DtypeKind::F32, 0);
    let mut group = group(&spec, 9, &[20, 12]);
    let mut engine = recording(&spec, DtypeKind::F32, BUDGET);
    sample_group(&mut engine, &group, 9);
    for s in &mut group {
        s.temperature = 1.5;
        let last = s.tokens.len() - 1;
        s.tokens[last] = (s.tokens[last] + 1) % spec.vocab as u32;
    }
    let (want, got) = (learned(&mut plain, &group), learned(&mut engine, &group));
    assert_eq!((&got.0, &got.1, &got.2), (&want.0, &want.1, &want.2));
    assert_eq!(got.3, 21, "the blocks were not computed all the same");
}

#[test]
fn a_call_that_failed_leaves_nothing_to_learn_from() {
    let spec = odd_spec();
    let mut engine = recording(&spec, DtypeKind::F32, BUDGET);
    // 1.x becomes NaN.
    engine.flip_bit("model.norm.weight", 3, 30).unwrap();
    let mut logits = vec![0.0; spec.vocab];
    let kv = engine.kv_open().unwrap();
    engine.extend(&[Extend { kv, tokens: &[1, 2] }], &mut logits).unwrap_err();
    assert!(engine.record.as_ref().unwrap().find(&[1]).is_none());
    engine.kv_close(kv);
    assert!(engine.record.as_ref().unwrap().is_empty());
}
