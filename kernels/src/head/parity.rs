//! Against the f64 definition; bit-equal to the sampler's log-softmax and between machines.
use super::{Head, Target, Upstream, backward, forward, reference};
use crate::Format;
use crate::linear::{self, Matrix, Output, Projection, halve, pack, packed_len, quantize, unpack};
use crate::logprob;
use crate::testing::{bits, machines, noise, relative};

#[test]
fn both_directions_agree_with_the_definition_on_every_path() {
    for (rows, vocab, inner) in [(1, 1, 1), (3, 50, 7), (11, logprob::CHUNK + 100, 9)] {
        let (hidden, weight) = (noise(1, rows * inner), noise(2, vocab * inner));
        let (d_logp, d_entropy) = (noise(3, rows), noise(4, rows));
        let target = |row: usize| Target { token: ((row * 977 + 13) % vocab) as u32, temperature: 0.5 + row as f32 * 0.1 };
        let targets: Vec<_> = (0..rows).map(target).collect();
        let logits = reference::logits(&hidden, &weight, inner);
        let want: Vec<_> = (0..rows)
            .map(|r| {
                let t = targets[r];
                let d = (f64::from(d_logp[r]), f64::from(d_entropy[r]));
                reference::target(&logits[r], t.token as usize, f64::from(t.temperature), d.0, d.1)
            })
            .collect();
        let (mut dx, mut dw) = (vec![0.0; rows * inner], vec![0.0; vocab * inner]);
        for (row, (.., gradient)) in want.iter().enumerate() {
            for (v, d) in gradient.iter().enumerate() {
                for k in 0..inner {
                    dx[row * inner + k] += d * f64::from(weight[v * inner + k]);
                    dw[v * inner + k] += d * f64::from(hidden[row * inner + k]);
                }
            }
        }
        let mut first = None;
        for cpu in machines() {
            let mut packed = vec![0.0; packed_len(vocab, inner)];
            pack(&cpu, &weight, vocab, inner, &mut packed);
            let mut head = Head::default();
            let got = forward(&cpu, &mut head, (&hidden, inner), (packed[..].into(), vocab), &targets);
            for ((stats, logp), want) in got.iter().zip(&want) {
                assert!((f64::from(*logp) - want.0).abs() < 1e-5 && (f64::from(stats.entropy) - want.1).abs() < 1e-5);
            }
            let upstream =
                (0..rows).map(|r| Upstream { target: targets[r], stats: got[r].0, d_logp: d_logp[r], d_entropy: d_entropy[r] });
            let (mut d_hidden, mut d_packed) = (vec![f32::NAN; rows * inner], vec![0.0; packed.len()]);
            let upstream: Vec<_> = upstream.collect();
            backward(&cpu, &mut head, (&hidden, inner), (packed[..].into(), vocab), &upstream, &mut d_hidden, &mut d_packed);
            let mut d_weight = vec![0.0; vocab * inner];
            unpack(&cpu, &d_packed, vocab, inner, &mut d_weight);
            if vocab > 1 {
                assert!(relative(&d_hidden, &dx) < 1e-5 && relative(&d_weight, &dw) < 1e-5, "{rows} x {vocab} x {inner}");
            }
            let all = (bits(&d_hidden), bits(&d_weight), got.iter().map(|g| g.1.to_bits()).collect::<Vec<_>>());
            assert_eq!(first.get_or_insert_with(|| all.clone()), &all, "{}", cpu.path());
        }
    }
}

#[test]
fn the_samplers_log_probs_are_the_learners() {
    let (rows, vocab, inner) = (9, 2 * logprob::CHUNK + 333, 40);
    let (hidden, weight) = (noise(5, rows * inner), noise(6, vocab * inner));
    for cpu in machines() {
        let mut packed = vec![0.0; packed_len(vocab, inner)];
        pack(&cpu, &weight, vocab, inner, &mut packed);
        let mut pairs = vec![0; packed_len(vocab, inner / 2)];
        halve(&cpu, &packed, inner, &mut pairs);
        let targets: Vec<_> = (0..rows).map(|r| Target { token: (r * 401) as u32 % vocab as u32, temperature: 0.7 }).collect();
        let mut groups = vec![0; packed_len(vocab, Format::Int8.words(inner))];
        quantize(&cpu, &packed, inner, &mut groups);
        for weight in [Matrix::f32(&packed), Matrix::bf16(&pairs), Matrix::int8(&groups)] {
            let learner = forward(&cpu, &mut Head::default(), (&hidden, inner), (weight, vocab), &targets);
            for (row, (hidden, target)) in hidden.chunks(inner).zip(&targets).enumerate() {
                let mut logits = vec![0.0; vocab];
                linear::forward(&cpu, hidden, inner, Output::Set, &mut [Projection { weight, out: vocab, y: &mut logits }]);
                let stats = logprob::row(cpu.path(), &logits, 0.7);
                assert_eq!(stats, learner[row].0);
                assert_eq!(stats.logp(logits[target.token as usize]).to_bits(), learner[row].1.to_bits());
            }
        }
    }
}

#[test]
fn bf16_gradients_stay_near_the_definition_and_are_the_same_on_every_path() {
    let (rows, vocab, inner) = (5, logprob::CHUNK + 101, 9);
    let (hidden, weight, d_logp) = (noise(1, rows * inner), noise(2, vocab * inner), noise(3, rows));
    let targets: Vec<_> = (0..rows).map(|r| Target { token: (r * 307 + 13) as u32, temperature: 1.0 }).collect();
    let (mut dx, mut dw) = (vec![0.0; rows * inner], vec![0.0; vocab * inner]);
    for (row, logits) in reference::logits(&hidden, &weight, inner).iter().enumerate() {
        let (.., gradient) = reference::target(logits, targets[row].token as usize, 1.0, f64::from(d_logp[row]), 0.0);
        for (v, d) in gradient.iter().enumerate() {
            for k in 0..inner {
                dx[row * inner + k] += d * f64::from(weight[v * inner + k]);
                dw[v * inner + k] += d * f64::from(hidden[row * inner + k]);
            }
        }
    }
    let mut first = None;
    for cpu in machines() {
        let mut packed = vec![0.0; packed_len(vocab, inner)];
        pack(&cpu, &weight, vocab, inner, &mut packed);
        let mut pairs = vec![0; packed_len(vocab, inner.div_ceil(2))];
        halve(&cpu, &packed, inner, &mut pairs);
        let (head, matrix) = (&mut Head::default(), Matrix::bf16(&pairs));
        let upstream: Vec<_> = forward(&cpu, head, (&hidden, inner), (matrix, vocab), &targets)
            .into_iter()
            .zip(&targets)
            .zip(&d_logp)
            .map(|(((stats, _), target), d_logp)| Upstream { target: *target, stats, d_logp: *d_logp, d_entropy: 0.0 })
            .collect();
        let (mut d_hidden, mut d_packed) = (vec![f32::NAN; rows * inner], vec![0.0; packed.len()]);
        backward(&cpu, head, (&hidden, inner), (matrix, vocab), &upstream, &mut d_hidden, &mut d_packed);
        let mut d_weight = vec![0.0; vocab * inner];
        unpack(&cpu, &d_packed, vocab, inner, &mut d_weight);
        // A factor is off by at most 2^-9 of itself, twice in a product; the logits' own error is of the same size.
        assert!(relative(&d_hidden, &dx) < 0.01 && relative(&d_weight, &dw) < 0.01);
        let all = (bits(&d_hidden), bits(&d_weight));
        assert_eq!(first.get_or_insert_with(|| all.clone()), &all, "{}", cpu.path());
    }
}
