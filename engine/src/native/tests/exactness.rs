//! B1: one token's log-prob has the same bits in every arrangement of the work.
use super::*;

pub(super) fn scores(engine: &mut NativeEngine, sequences: &[PackedSequence], train: bool) -> Vec<Vec<u32>> {
    let result = engine.forward(&PackedBatch { sequences: sequences.to_vec() }, train).unwrap();
    let mut at = 0;
    let mut own = |s: &PackedSequence| {
        at += s.targets.len();
        bits(&result.logp[at - s.targets.len()..at])
    };
    sequences.iter().map(&mut own).collect()
}

/// Feeds sequences in chunks side by side, as the sampler does; the log-probs that can be read at the cuts.
pub(super) fn sampled(
    engine: &mut NativeEngine,
    sequences: &[PackedSequence],
    cut: impl Fn(usize, usize) -> usize,
) -> Vec<Vec<(usize, u32)>> {
    let vocab = engine.spec().vocab;
    let memories: Vec<_> = sequences.iter().map(|_| engine.kv_open().unwrap()).collect();
    let mut found = vec![Vec::new(); sequences.len()];
    for round in 0.. {
        let mut work = Vec::new();
        let mut members = Vec::new();
        for (index, (kv, s)) in memories.iter().zip(sequences).enumerate() {
            let start = engine.kv_len(*kv);
            let end = (start + cut(index, round)).min(s.tokens.len());
            if start < end {
                work.push(Extend { kv: *kv, tokens: &s.tokens[start..end] });
                members.push((index, end));
            }
        }
        if work.is_empty() {
            break;
        }
        let mut logits = vec![0.0; work.len() * vocab];
        engine.extend(&work, &mut logits).unwrap();
        for ((index, end), row) in members.into_iter().zip(logits.chunks(vocab)) {
            let s = &sequences[index];
            if let Some(next) = s.tokens.get(end) {
                let logp = logprob::row(Path::detect(), row, s.temperature).logp(row[*next as usize]);
                found[index].push((end, logp.to_bits()));
            }
        }
    }
    memories.iter().for_each(|kv| engine.kv_close(*kv));
    found
}

pub(super) fn assert_agree(found: &[Vec<(usize, u32)>], want: &[Vec<u32>], what: &str) {
    for (index, (found, want)) in found.iter().zip(want).enumerate() {
        for (target, logp) in found {
            assert_eq!(*logp, want[target - 1], "{what}: target {target} of sequence {index}");
        }
    }
}

#[test]
fn company_threads_instructions_and_training_change_no_bit() {
    for spec in odd_specs() {
        let sequences: Vec<_> = (0..33).map(|i| sequence(&spec, 2 + (i * 37) % 90, i as u64)).collect();
        let want = scores(&mut engine(&spec, Path::detect(), 1), &sequences, false);
        for path in Path::available() {
            for threads in [1, 2] {
                let mut engine = engine(&spec, path, threads);
                let count = if path == Path::PORTABLE { 3 } else { 33 };
                for batch in [1, 3, 8, 33] {
                    for (part, want) in sequences[..count].chunks(batch).zip(want.chunks(batch)) {
                        assert_eq!(
                            scores(&mut engine, part, batch == 3),
                            want[..part.len()],
                            "{:?}, {path}, {threads} threads, batch {batch}",
                            spec.family
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_beginning_computed_once_changes_no_bit() {
    for spec in odd_specs() {
        let mut sequences = vec![sequence(&spec, 20, 1)];
        sequences.extend(family(&spec, 70, &[90, 71, 75, 140]));
        sequences.extend(family(&spec, 1, &[2, 30, 9]));
        let alone: Vec<_> = sequences.iter().map(|s| PackedSequence { shared: 0, ..s.clone() }).collect();
        let want = scores(&mut engine(&spec, Path::detect(), 1), &alone, false);
        for path in Path::available() {
            for threads in [1, 2] {
                let mut engine = engine(&spec, path, threads);
                for train in [false, true] {
                    assert_eq!(scores(&mut engine, &sequences, train), want, "{:?}, {path}, {threads} threads", spec.family);
                }
            }
        }
    }
}

#[test]
fn a_family_longer_than_a_pass_is_cut_without_a_trace() {
    let spec = DecoderSpec { max_context: 3000, ..tiny_spec(true) };
    let sequences = family(&spec, 300, &[700, 310, 900, 400, 1500]);
    let alone: Vec<_> = sequences.iter().map(|s| PackedSequence { shared: 0, ..s.clone() }).collect();
    let mut engine = engine(&spec, Path::detect(), 2);
    assert_eq!(scores(&mut engine, &sequences, false), scores(&mut engine, &alone, false));
}

#[test]
fn decoding_and_any_cut_of_a_prompt_give_the_bits_of_the_forward() {
    for spec in odd_specs() {
        let sequences: Vec<_> = [150, 70, 65, 64, 17, 3].into_iter().zip(0..).map(|(n, seed)| sequence(&spec, n, seed)).collect();
        for path in Path::available() {
            let count = if path == Path::PORTABLE { 2 } else { 6 };
            let sequences = &sequences[sequences.len() - count..];
            let mut engine = engine(&spec, path, 2);
            let want = scores(&mut engine, sequences, true);
            assert_agree(&sampled(&mut engine, sequences, |_, _| 1), &want, "decoding");
            for seed in 0..4 {
                let cut = |index: usize, round: usize| 1 + (index * 31 + round * 17 + seed * 7) % [3, 20, 65, 150][seed];
                assert_agree(&sampled(&mut engine, sequences, cut), &want, "chunks");
            }
        }
    }
}

#[test]
fn long_prompts_are_cut_into_passes_without_a_trace() {
    let spec = DecoderSpec { max_context: 3000, ..tiny_spec(true) };
    let mut s = sequence(&spec, 2300, 5);
    s.targets = vec![1, 1023, 1024, 1025, 2048, 2299];
    let mut engine = engine(&spec, Path::detect(), 2);
    let want = scores(&mut engine, std::slice::from_ref(&s), true).remove(0);
    let found = sampled(&mut engine, std::slice::from_ref(&s), |_, round| if round == 0 { 2299 } else { 1 });
    assert_eq!(found[0], [(2299, want[5])]);
}

#[test]
fn truncation_forgets_exactly_what_was_asked() {
    let spec = odd_spec();
    let mut engine = engine(&spec, Path::detect(), 2);
    let (kept, other) = (sequence(&spec, 80, 1).tokens, sequence(&spec, 75, 2).tokens);
    let mut want = vec![0.0; spec.vocab];
    let fresh = engine.kv_open().unwrap();
    engine.extend(&[Extend { kv: fresh, tokens: &kept }], &mut want).unwrap();
    for cut in [0, 1, 63, 64, 65, 79] {
        let kv = engine.kv_open().unwrap();
        let mut logits = vec![0.0; spec.vocab];
        engine.extend(&[Extend { kv, tokens: &kept[..cut.max(1)] }], &mut logits).unwrap();
        engine.extend(&[Extend { kv, tokens: &other }], &mut logits).unwrap();
        engine.kv_truncate(kv, cut);
        assert_eq!(engine.kv_len(kv), cut);
        engine.extend(&[Extend { kv, tokens: &kept[cut..] }], &mut logits).unwrap();
        assert_eq!(bits(&logits), bits(&want), "cut at {cut}");
        engine.kv_close(kv);
    }
}

#[test]
fn forked_memories_share_pages_and_nothing_else() {
    let spec = odd_spec();
    // Four pages of 2 layers, 2 heads, 64 positions: three for the first sequence and one for what its fork writes itself.
    let mut engine = NativeEngine::with_path(spec.clone(), Path::detect(), 2, 4 * (2 * 2 * 64 * (10 + 16) * 4)).unwrap();
    engine.import(&random_weights(&spec, 1)).unwrap();
    let mut apart = super::engine(&spec, Path::detect(), 2);
    let tokens = sequence(&spec, 150, 1).tokens;
    let mut logits = vec![0.0; spec.vocab];
    let first = engine.kv_open().unwrap();
    engine.extend(&[Extend { kv: first, tokens: &tokens[..140] }], &mut logits).unwrap();
    for cut in [0, 1, 64, 100, 128, 140] {
        let fork = engine.kv_fork(first, cut).unwrap();
        assert_eq!((engine.kv_len(fork), engine.kv_len(first)), (cut, 140));
        // It goes on with other tokens as if it were alone.
        let other: Vec<u32> = tokens[..cut].iter().copied().chain([5, 6, 7]).collect();
        engine.extend(&[Extend { kv: fork, tokens: &other[cut..] }], &mut logits).unwrap();
        let mut want = vec![0.0; spec.vocab];
        let kv = apart.kv_open().unwrap();
        apart.extend(&[Extend { kv, tokens: &other }], &mut want).unwrap();
        apart.kv_close(kv);
        assert_eq!(bits(&logits), bits(&want), "cut at {cut}");
        engine.kv_close(fork);
    }
    let fork = engine.kv_fork(first, 140).unwrap();
    engine.extend(&[Extend { kv: first, tokens: &tokens[140..] }], &mut logits).unwrap();
    let straight = bits(&logits);
    engine.extend(&[Extend { kv: fork, tokens: &tokens[140..] }], &mut logits).unwrap();
    assert_eq!(bits(&logits), straight, "what the first one wrote is not seen by its fork");
    assert!(engine.kv_fork(first, 151).unwrap_err().to_string().contains("it holds 150"));
}

#[test]
fn one_flipped_weight_bit_is_seen() {
    let spec = odd_spec();
    let mut engine = engine(&spec, Path::detect(), 2);
    let sequences = [sequence(&spec, 40, 3)];
    let before = scores(&mut engine, &sequences, false);
    engine.flip_bit("model.layers.1.mlp.up_proj.weight", 37, 12).unwrap();
    assert_ne!(scores(&mut engine, &sequences, false), before);
    engine.flip_bit("model.layers.1.mlp.up_proj.weight", 37, 12).unwrap();
    assert_eq!(scores(&mut engine, &sequences, false), before);
    assert_eq!(engine.export().unwrap(), random_weights(&spec, 1));
    assert_eq!(engine.digest().unwrap(), random_weights(&spec, 1).digest());
}
