//! Values and gradients of every parameter against the f64 decoder.
use super::reference::{Weights, score, widen};
use super::*;
use std::ops::ControlFlow;

pub(super) fn batch(spec: &DecoderSpec) -> PackedBatch {
    let mut sequences: Vec<_> = [9, 2, 1, 5].into_iter().zip(0..).map(|(len, seed)| sequence(spec, len, seed)).collect();
    sequences[0].targets = vec![1, 4, 5, 8];
    PackedBatch { sequences }
}

/// The loss's weights: one for each log-prob and entropy.
pub(super) fn upstream(targets: usize) -> (Vec<f32>, Vec<f32>) {
    let mut next = noise(77);
    (0..targets).map(|_| (next() as f32, 0.5 * next() as f32)).unzip()
}

fn loss(spec: &DecoderSpec, weights: &Weights, batch: &PackedBatch, up: &(Vec<f32>, Vec<f32>)) -> f64 {
    let scores = batch.sequences.iter().flat_map(|s| score(spec, weights, s));
    scores.zip(up.0.iter().zip(&up.1)).map(|((logp, entropy), (a, b))| logp * f64::from(*a) + entropy * f64::from(*b)).sum()
}

#[test]
fn log_probs_and_entropies_agree_with_the_f64_decoder() {
    for spec in odd_specs().chain([tiny_spec(true), tiny_spec(false)]) {
        let weights = widen(&random_weights(&spec, 1));
        let batch = batch(&spec);
        let got = engine(&spec, Path::detect(), 2).forward(&batch, false).unwrap();
        let want: Vec<_> = batch.sequences.iter().flat_map(|s| score(&spec, &weights, s)).collect();
        assert_eq!((got.logp.len(), got.entropy.len()), (want.len(), want.len()));
        for ((logp, entropy), want) in got.logp.iter().zip(&got.entropy).zip(want) {
            assert!((f64::from(*logp) - want.0).abs() < 2e-5 && (f64::from(*entropy) - want.1).abs() < 2e-5);
        }
    }
}

#[test]
fn every_parameter_gets_its_numerical_gradient() {
    let tied = FAMILIES.map(|family| DecoderSpec { family, ..tiny_spec(true) });
    for spec in tied.into_iter().chain([tiny_spec(false)]) {
        let mut batch = batch(&spec);
        batch.sequences.extend(family(&spec, 3, &[5, 7, 4]));
        let up = upstream(batch.targets());
        let mut engine = engine(&spec, Path::detect(), 2);
        engine.forward(&batch, true).unwrap();
        engine.backward(Upstream { d_logp: &up.0, d_entropy: Some(&up.1) }).unwrap();
        let gradients = engine.gradients().unwrap();

        let mut weights = widen(&random_weights(&spec, 1));
        let step = 1e-4;
        for (name, tensor) in &gradients.0 {
            let mut numeric = vec![0.0; tensor.data.len()];
            for (index, gradient) in numeric.iter_mut().enumerate() {
                let mut at = |shift: f64| {
                    weights.entry(name.clone()).and_modify(|values| values[index] += shift);
                    loss(&spec, &weights, &batch, &up)
                };
                let (above, below) = (at(step), at(-2.0 * step));
                at(step);
                *gradient = (above - below) / (2.0 * step);
            }
            let scale = numeric.iter().fold(0.0, |most: f64, g| most.max(g.abs()));
            // Without rotation a key's bias adds the same to all scores of a query: nothing depends on it.
            if spec.family == Family::Gpt2 && name.ends_with("k_proj.bias") {
                assert!(scale < 1e-6 && tensor.data.iter().all(|g| g.abs() < 1e-5), "{name} has a gradient");
                continue;
            }
            assert!(scale > 1e-6, "{name} has no gradient to compare");
            for (index, (got, want)) in tensor.data.iter().zip(&numeric).enumerate() {
                assert!((f64::from(*got) - want).abs() < 1e-3 * scale, "{name}[{index}]: {got}, not {want}");
            }
        }
    }
}

#[test]
fn gradients_add_up_over_micro_batches() {
    // With an output projection of its own, every chain over rows simply goes on: the bits are those of one batch.
    for family in FAMILIES {
        let spec = DecoderSpec { family, ..tiny_spec(false) };
        let batch = batch(&spec);
        let up = upstream(batch.targets());
        let mut whole = engine(&spec, Path::detect(), 2);
        whole.forward(&batch, true).unwrap();
        whole.backward(Upstream { d_logp: &up.0, d_entropy: None }).unwrap();
        let mut parts = engine(&spec, Path::detect(), 1);
        let mut at = 0;
        for sequence in &batch.sequences {
            let n = sequence.targets.len();
            parts.forward(&PackedBatch { sequences: vec![sequence.clone()] }, true).unwrap();
            parts.backward(Upstream { d_logp: &up.0[at..at + n], d_entropy: None }).unwrap();
            at += n;
        }
        assert_eq!(parts.gradients().unwrap(), whole.gradients().unwrap());
        assert_eq!(parts.grad_norm().unwrap(), whole.grad_norm().unwrap());
    }
}

/// What a pass says that it is done with is final, whatever becomes of it stays, and a pass that is broken off ends there.
#[test]
fn gradients_are_shown_when_they_are_final() {
    for tied_embeddings in [true, false] {
        for spec in odd_specs().map(|spec| DecoderSpec { tied_embeddings, ..spec }) {
            let batch = PackedBatch { sequences: (0..3).map(|i| sequence(&spec, 9 + 7 * i as usize, i)).collect() };
            let up = vec![0.3; batch.targets()];
            let upstream = Upstream { d_logp: &up, d_entropy: None };
            let all = |engine: &mut NativeEngine| {
                let mut all = Vec::new();
                engine
                    .each_gradient(&mut |bucket| {
                        all.extend_from_slice(bucket);
                        ControlFlow::Continue(())
                    })
                    .unwrap();
                all
            };
            let mut plain = engine(&spec, Path::detect(), 1);
            plain.forward(&batch, true).unwrap();
            plain.backward(upstream).unwrap();
            let want = all(&mut plain);
            let mut shown = engine(&spec, Path::detect(), 2);
            let order = shown.gradient_order();
            assert_eq!(order.len(), spec.layers + 2);
            for stop in 1..=order.len() {
                shown.zero_grad();
                shown.forward(&batch, true).unwrap();
                let mut seen = Vec::new();
                shown
                    .backward_in_order(upstream, &mut |all, range| {
                        assert_eq!(bits(&all[range.clone()]), bits(&want[range.clone()]), "{range:?}");
                        all[range.clone()].fill(7.0);
                        seen.push(range);
                        if seen.len() == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })
                    .unwrap();
                assert_eq!(seen, order[..stop]);
                let left = all(&mut shown);
                assert!(seen.into_iter().all(|range| left[range].iter().all(|&value| value == 7.0)));
            }
        }
    }
}
