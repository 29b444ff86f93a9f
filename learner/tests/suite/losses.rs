//! Objectives and advantages against PyTorch's numbers (`golden/make_losses.py`) and against numerical differences.
use cohort_learner::advantage::{self, Advantage as _, grpo::Grpo, rloo::Rloo};
use cohort_learner::algo::{self, Denominators, Loss, LossInput, correction};
use cohort_learner::config::{AggregationConfig, CorrectionConfig, LossConfig};
use proptest::prelude::*;
use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    losses: Vec<LossCase>,
    advantages: Vec<AdvantageCase>,
}

type Ragged<T> = Vec<Vec<T>>;

#[derive(Deserialize)]
struct LossCase {
    name: String,
    config: LossConfig,
    correction: CorrectionConfig,
    totals: (u64, u64),
    logp: Ragged<f64>,
    logp_old: Ragged<f64>,
    logp_sampled: Ragged<f64>,
    logp_ref: Ragged<f64>,
    entropy: Ragged<f64>,
    mask: Ragged<bool>,
    advantages: Vec<f64>,
    loss: f64,
    d_logp: Ragged<f64>,
    d_entropy: Option<Ragged<f64>>,
}

#[derive(Deserialize)]
struct AdvantageCase {
    rewards: Vec<f64>,
    grpo: Vec<f64>,
    grpo_bessel: Vec<f64>,
    grpo_no_std: Vec<f64>,
    rloo: Vec<f64>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/losses.json")).unwrap()
}

fn ranges(lengths: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut at = 0;
    let next = |len| {
        at += len;
        at - len..at
    };
    lengths.into_iter().map(next).collect()
}

fn close(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-12 * w.abs().max(1.0), "{what}[{i}] is {g}, PyTorch says {w}");
    }
}

#[test]
fn losses_are_pytorchs() {
    for case in golden().losses {
        let (logp, old, reference) = (case.logp.concat(), case.logp_old.concat(), case.logp_ref.concat());
        let loss = algo::build(&case.config);
        let correction = correction::build(&case.correction);
        let weight = correction.map(|c| correction::weights(c.as_ref(), &old, &case.logp_sampled.concat()));
        let out = loss.evaluate(&LossInput {
            logp: &logp,
            logp_old: &old,
            logp_ref: loss.needs_reference().then_some(&reference[..]),
            weight: weight.as_deref(),
            entropy: &case.entropy.concat(),
            mask: &case.mask.concat(),
            sequences: &ranges(case.logp.iter().map(Vec::len)),
            advantages: &case.advantages,
            totals: Denominators { sequences: case.totals.0, tokens: case.totals.1 },
        });
        close(&[out.loss], &[case.loss], &format!("{}: loss", case.name));
        close(&out.d_logp, &case.d_logp.concat(), &format!("{}: d_logp", case.name));
        assert_eq!(out.d_entropy.is_some(), case.d_entropy.is_some(), "{}", case.name);
        if let (Some(got), Some(want)) = (out.d_entropy, case.d_entropy) {
            close(&got, &want.concat(), &format!("{}: d_entropy", case.name));
        }
    }
}

#[test]
fn advantages_are_pytorchs() {
    let plain = Grpo { std: true, bessel: false, eps: advantage::grpo::EPS };
    for case in golden().advantages {
        close(&plain.advantages(&case.rewards), &case.grpo, "grpo");
        close(&Grpo { bessel: true, ..plain }.advantages(&case.rewards), &case.grpo_bessel, "grpo with Bessel's correction");
        close(&Grpo { std: false, ..plain }.advantages(&case.rewards), &case.grpo_no_std, "grpo without std");
        close(&Rloo.advantages(&case.rewards), &case.rloo, "rloo");
    }
}

#[derive(Debug, Clone)]
struct Random {
    lengths: Vec<usize>,
    columns: Vec<(f64, f64, f64, f64, bool)>,
    advantages: Vec<f64>,
}

/// Log-prob, drift since sampling, drift from the reference, entropy and mask of each token of up to 5 sequences.
fn random() -> impl Strategy<Value = Random> {
    let token = (-4.0f64..-0.1, -0.6f64..0.6, -0.6f64..0.6, 0.0f64..3.0, prop::bool::weighted(0.8));
    prop::collection::vec((0usize..6, -2.0f64..2.0), 1..6).prop_flat_map(move |shape| {
        let (lengths, advantages): (Vec<usize>, Vec<f64>) = shape.into_iter().unzip();
        let n = lengths.iter().sum::<usize>();
        prop::collection::vec(token.clone(), n).prop_map(move |columns| Random {
            lengths: lengths.clone(),
            columns,
            advantages: advantages.clone(),
        })
    })
}

struct Input {
    logp: Vec<f64>,
    old: Vec<f64>,
    reference: Vec<f64>,
    weight: Option<Vec<f64>>,
    entropy: Vec<f64>,
    mask: Vec<bool>,
    sequences: Vec<Range<usize>>,
    advantages: Vec<f64>,
    totals: Denominators,
}

impl Input {
    fn of(r: &Random) -> Self {
        let mask: Vec<bool> = r.columns.iter().map(|c| c.4).collect();
        Self {
            logp: r.columns.iter().map(|c| c.0).collect(),
            old: r.columns.iter().map(|c| c.0 + c.1).collect(),
            reference: r.columns.iter().map(|c| c.0 + c.2).collect(),
            weight: None,
            entropy: r.columns.iter().map(|c| c.3).collect(),
            sequences: ranges(r.lengths.iter().copied()),
            advantages: r.advantages.clone(),
            totals: Denominators {
                sequences: r.lengths.len() as u64 + 1,
                tokens: mask.iter().filter(|&&m| m).count() as u64 + 2,
            },
            mask,
        }
    }

    fn view<'a>(&'a self, loss: &dyn Loss, sequences: &'a [Range<usize>], advantages: &'a [f64]) -> LossInput<'a> {
        LossInput {
            logp: &self.logp,
            logp_old: &self.old,
            logp_ref: loss.needs_reference().then_some(&self.reference[..]),
            weight: self.weight.as_deref(),
            entropy: &self.entropy,
            mask: &self.mask,
            sequences,
            advantages,
            totals: self.totals,
        }
    }

    fn loss(&self, loss: &dyn Loss) -> f64 {
        loss.evaluate(&self.view(loss, &self.sequences, &self.advantages)).loss
    }
}

fn losses() -> Vec<Arc<dyn Loss>> {
    let grpo = |aggregation, beta, entropy_coef| LossConfig::Grpo {
        clip_low: 0.2,
        clip_high: 0.28,
        beta,
        entropy_coef,
        aggregation,
        max_completion_length: Some(7),
    };
    [
        grpo(AggregationConfig::SequenceMean, 0.0, 0.0),
        grpo(AggregationConfig::TokenMean, 0.1, 0.0),
        grpo(AggregationConfig::Constant, 0.0, 0.05),
        LossConfig::DrGrpo { clip_low: 0.2, clip_high: 0.2, beta: 0.3, max_completion_length: 9 },
        LossConfig::Sft {},
    ]
    .iter()
    .map(algo::build)
    .collect()
}

/// The derivative is not defined where the ratio meets its clip.
fn at_a_kink(input: &Input, i: usize) -> bool {
    let ratio = (input.logp[i] - input.old[i]).exp();
    [0.8, 1.2, 1.28].iter().any(|kink| (ratio - kink).abs() < 1e-4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Central differences of the loss are its gradient. The ratio that weighs the KL term is detached, so it is held.
    #[test]
    fn gradients_are_the_differences(r in random()) {
        const H: f64 = 1e-6;
        let input = Input::of(&r);
        for loss in losses().iter().map(AsRef::as_ref) {
            let kl = loss.needs_reference();
            let out = loss.evaluate(&input.view(loss, &input.sequences, &input.advantages));
            for i in 0..input.logp.len() {
                if at_a_kink(&input, i) { continue; }
                let mut moved = Input::of(&r);
                let mut at = |h: f64| { moved.logp[i] = input.logp[i] + h; moved.loss(loss) };
                let mut difference = (at(H) - at(-H)) / (2.0 * H);
                if kl && input.mask[i] {
                    // The difference also sees the detached ratio move: take out beta w r k3, what that adds.
                    let d = input.reference[i] - input.logp[i];
                    let weight = 1.0 / match loss.name() {
                        "dr_grpo" => input.totals.sequences as f64 * 9.0,
                        _ => input.totals.tokens as f64,
                    };
                    let beta = if loss.name() == "dr_grpo" { 0.3 } else { 0.1 };
                    difference -= weight * beta * (input.logp[i] - input.old[i]).exp() * (d.exp() - d - 1.0);
                }
                prop_assert!((difference - out.d_logp[i]).abs() < 1e-7, "{} d_logp[{}]: {} by difference, {} by formula",
                    loss.name(), i, difference, out.d_logp[i]);
                if let Some(d_entropy) = &out.d_entropy {
                    let mut moved = Input::of(&r);
                    moved.entropy[i] += H;
                    let up = moved.loss(loss);
                    moved.entropy[i] -= 2.0 * H;
                    prop_assert!(((up - moved.loss(loss)) / (2.0 * H) - d_entropy[i]).abs() < 1e-7);
                }
            }
        }
    }

    /// A correction scales each token's gradient by its factor and nothing else; within the bounds that is the ratio.
    #[test]
    fn a_correction_scales_each_tokens_gradient(r in random(), drift in prop::collection::vec(-3.0f64..3.0, 30)) {
        let plain = Input::of(&r);
        let sampled: Vec<f64> = plain.old.iter().zip(&drift).map(|(old, d)| old - d).collect();
        for config in [CorrectionConfig::Tis { min: 0.25, max: 2.0 }, CorrectionConfig::Mis { min: 0.5, max: 5.0 }] {
            let correction = correction::build(&config).unwrap();
            let weight = correction::weights(correction.as_ref(), &plain.old, &sampled);
            for (w, d) in weight.iter().zip(&drift) {
                let k = d.exp();
                let (inside, outside) = match config {
                    CorrectionConfig::Tis { min, max } => ((min..=max).contains(&k), k.clamp(min, max)),
                    CorrectionConfig::Mis { min, max } => ((min..=max).contains(&k), 0.0),
                    CorrectionConfig::None {} => unreachable!(),
                };
                prop_assert!((w - if inside { k } else { outside }).abs() < 1e-12, "{config:?}: {w} for {k}");
            }
            for loss in losses().iter().take(2).map(AsRef::as_ref) {
                let mut corrected = Input::of(&r);
                corrected.weight = Some(weight.clone());
                let a = loss.evaluate(&plain.view(loss, &plain.sequences, &plain.advantages));
                let b = loss.evaluate(&corrected.view(loss, &corrected.sequences, &corrected.advantages));
                for (i, (a, b)) in a.d_logp.iter().zip(&b.d_logp).enumerate() {
                    prop_assert!((a * weight[i] - b).abs() < 1e-12, "{}: {a} x {} is not {b}", loss.name(), weight[i]);
                }
                let unchanged = Input { weight: Some(vec![1.0; plain.logp.len()]), ..Input::of(&r) };
                let c = loss.evaluate(&unchanged.view(loss, &unchanged.sequences, &unchanged.advantages));
                prop_assert_eq!((a.loss, a.d_logp), (c.loss, c.d_logp), "a factor of 1 changes no bit");
            }
        }
    }

    /// Parts of a step add up to the step: the divisors are the step's.
    #[test]
    fn micro_batches_add_up(r in random(), cut in any::<prop::sample::Index>()) {
        let input = Input::of(&r);
        let cut = cut.index(input.sequences.len());
        for loss in losses().iter().map(AsRef::as_ref) {
            let whole = loss.evaluate(&input.view(loss, &input.sequences, &input.advantages));
            let (s, a) = (&input.sequences, &input.advantages);
            let parts = [loss.evaluate(&input.view(loss, &s[..cut], &a[..cut])), loss.evaluate(&input.view(loss, &s[cut..], &a[cut..]))];
            prop_assert!((whole.loss - parts[0].loss - parts[1].loss).abs() < 1e-12);
            for i in 0..input.logp.len() {
                prop_assert_eq!(whole.d_logp[i], parts[0].d_logp[i] + parts[1].d_logp[i]);
            }
        }
    }

    /// What stands outside the mask is not read.
    #[test]
    fn masked_tokens_do_not_count(r in random()) {
        let input = Input::of(&r);
        let mut other = Input::of(&r);
        for i in (0..input.mask.len()).filter(|&i| !input.mask[i]) {
            (other.logp[i], other.old[i], other.reference[i], other.entropy[i]) = (f64::NAN, 3.0, f64::INFINITY, f64::NAN);
        }
        for loss in losses().iter().map(AsRef::as_ref) {
            let a = loss.evaluate(&input.view(loss, &input.sequences, &input.advantages));
            let b = loss.evaluate(&other.view(loss, &other.sequences, &other.advantages));
            prop_assert_eq!((a.loss, a.d_logp, a.d_entropy), (b.loss, b.d_logp, b.d_entropy));
        }
    }

    /// On-policy the ratio is exactly 1: nothing is clipped and GRPO's gradient is -w A.
    #[test]
    fn on_policy_is_the_policy_gradient(r in random()) {
        let mut input = Input::of(&r);
        input.old.clone_from(&input.logp);
        let loss = &losses()[0];
        let out = loss.evaluate(&input.view(loss.as_ref(), &input.sequences, &input.advantages));
        for (range, advantage) in input.sequences.iter().zip(&input.advantages) {
            let tokens = input.mask[range.clone()].iter().filter(|&&m| m).count();
            for i in range.clone().filter(|&i| input.mask[i]) {
                let weight = 1.0 / (input.totals.sequences as f64 * tokens as f64);
                prop_assert_eq!(out.d_logp[i], weight * -advantage);
            }
        }
        for (name, value) in out.metrics.finish() {
            prop_assert!(!name.starts_with("clip_ratio") || value == 0.0, "{} is {}", name, value);
        }
    }
}
