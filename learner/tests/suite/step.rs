//! Whole steps on the toy model.
use crate::toy::{Toy, goal_request, small_spec};
use cohort_engine::Backend;
use cohort_learner::algo::sft::Sft;
use cohort_learner::batching::{Packing, Plan, Sample};
use cohort_learner::collective::Solo;
use cohort_learner::config::{CorrectionConfig, LossConfig, TrainingConfig};
use cohort_learner::schedule::Decay;
use cohort_learner::step::{self, Objective, StepError};
use cohort_learner::training::Training;
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::learner::StepRequest;
use proptest::prelude::*;
use std::collections::HashMap;

fn config() -> TrainingConfig {
    TrainingConfig {
        steps: 40,
        groups_per_step: 4,
        group_size: 4,
        learning_rate: 0.05,
        schedule: Decay::Constant,
        warmup_ratio: 0.0,
        micro_batch_tokens: 24,
        ..TrainingConfig::default()
    }
}

fn training(edit: impl FnOnce(&mut TrainingConfig)) -> Training {
    let mut config = config();
    edit(&mut config);
    Training::try_from(&config).unwrap()
}

fn run(toy: &mut Toy, training: &Training, request: &StepRequest) -> HashMap<String, f64> {
    step::run(toy, training, request, None, &mut |_, _| {}).unwrap().into_iter().collect()
}

#[test]
fn learns_what_is_rewarded() {
    let (training, mut toy) = (training(|_| {}), Toy::small(1));
    for step in 1..=40 {
        let request = goal_request(&toy, step, 4, 7);
        run(&mut toy, &training, &request);
    }
    let after = |previous| (toy.logp(previous, 7, 1.0)).exp();
    let mean = (0..11).map(after).sum::<f32>() / 11.0;
    assert!(mean > 0.5, "token 7 has probability {mean} after 40 steps");
}

#[test]
fn metrics_have_the_names_that_users_know() {
    let (training, mut toy) = (training(|_| {}), Toy::small(1));
    let request = goal_request(&toy, 1, 4, 7);
    let sampled: usize = request.groups.iter().flat_map(|g| &g.samples).map(|s| s.trajectory.completion_len()).sum();
    let m = run(&mut toy, &training, &request);
    for name in [
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/exact/mean",
        "rewards/exact/std",
        "loss",
        "policy_loss",
        "entropy",
        "grad_norm",
        "learning_rate",
        "clip_ratio/low_mean",
        "clip_ratio/high_max",
        "clip_ratio/region_mean",
        "num_tokens",
        "completions/mean_length",
        "completions/clipped_ratio",
        "completions/mean_terminated_length",
        "staleness/max",
        "sampling/importance_sampling_ratio/mean",
    ] {
        assert!(m.get(name).is_some_and(|v| v.is_finite()), "{name} is {:?}", m.get(name));
    }
    assert!(m["grad_norm"] > 0.0);
    assert_eq!(m["sampling/sampling_logp_difference/max"], 0.0, "the toy's own log-probs, to the bit");
    assert_eq!(m["exactness/logp_difference_max"], 0.0);
    assert_eq!((m["exactness/tokens"], m["exactness/stale_tokens"], m["exactness/inexact_tokens"]), (sampled as f64, 0.0, 0.0));
    assert_eq!(m["sampling/importance_sampling_ratio/max"], 1.0);
    assert_eq!((m["staleness/max"], m["learning_rate"]), (0.0, 0.05));
}

#[test]
fn one_flipped_bit_in_the_sampler_shows() {
    let (training, mut toy) = (training(|_| {}), Toy::small(1));
    let mut sampler = toy.clone();
    let weight = &mut sampler.weights.0.get_mut("lm_head.weight").unwrap().data[9];
    *weight = f32::from_bits(weight.to_bits() ^ (1 << 16));
    let request = goal_request(&sampler, 1, 4, 7);
    assert!(run(&mut toy, &training, &request)["sampling/sampling_logp_difference/max"] > 0.0);
}

const CORRECTIONS: [CorrectionConfig; 2] =
    [CorrectionConfig::Tis { min: 0.0, max: 2.0 }, CorrectionConfig::Mis { min: 0.5, max: 5.0 }];

#[test]
fn a_correction_changes_no_bit_of_an_exact_step() {
    let request = goal_request(&Toy::small(1), 1, 4, 7);
    for inner_epochs in [1, 2] {
        let weights = |correction| {
            let mut toy = Toy::small(1);
            run(&mut toy, &training(|c| (c.correction, c.inner_epochs) = (correction, inner_epochs)), &request);
            toy.weights
        };
        let plain = weights(CorrectionConfig::None {});
        CORRECTIONS.into_iter().for_each(|correction| assert_eq!(weights(correction), plain, "{correction:?}"));
    }
}

/// A step from version 3 over groups that `sampler` made as version 2, the first group's log-probs being no version's own.
fn stale_request(sampler: &Toy) -> StepRequest {
    let mut request = goal_request(sampler, 4, 4, 7);
    for (group, digest) in request.groups.iter_mut().zip(&mut request.intent.digests) {
        for span in group.samples.iter_mut().flat_map(|s| &mut s.trajectory.spans) {
            (span.version, span.exact) = (PolicyVersion(2), group.group.0 != 12);
        }
        *digest = cohort_learner::aggregator::payload_digest(group).unwrap();
    }
    request
}

#[test]
fn stale_and_inexact_tokens_are_counted_apart() {
    let request = stale_request(&Toy::small(2));
    let m = run(&mut Toy::small(1), &training(|_| {}), &request);
    let sampled = |g: usize| request.groups[g].samples.iter().map(|s| s.trajectory.completion_len()).sum::<usize>() as f64;
    assert_eq!((m["exactness/tokens"], m["exactness/inexact_tokens"]), (0.0, sampled(0)));
    assert_eq!(m["exactness/stale_tokens"], sampled(1) + sampled(2) + sampled(3));
    assert!(!m.contains_key("exactness/logp_difference_max"), "nothing to promise");
    assert!(m["sampling/sampling_logp_difference/max"] > 0.1 && m["sampling/importance_sampling_ratio/max"] > 1.1);
    assert_eq!(m["staleness/max"], 1.0);
}

#[test]
fn with_a_correction_the_ratio_is_clipped_to_the_base_policy() {
    let request = stale_request(&Toy::small(2));
    let step = |correction, inner_epochs| {
        let mut toy = Toy::small(1);
        let m = run(&mut toy, &training(|c| (c.correction, c.inner_epochs) = (correction, inner_epochs)), &request);
        (toy.weights, m["clip_ratio/region_mean"])
    };
    let (plain, clipped) = step(CorrectionConfig::None {}, 1);
    assert!(clipped > 0.1, "{clipped}");
    let [tis, mis] = CORRECTIONS.map(|c| step(c, 1));
    assert_eq!((tis.1, mis.1), (0.0, 0.0), "at its first update the current policy is the base");
    assert!(tis.0 != plain && mis.0 != plain && tis.0 != mis.0);
    // A second epoch has moved away from the base, whose log-probs were kept: some ratios now meet their clip.
    let far = TrainingConfig { learning_rate: 0.5, inner_epochs: 2, correction: CORRECTIONS[0], ..config() };
    let m = run(&mut Toy::small(1), &Training::try_from(&far).unwrap(), &request);
    assert!(m["clip_ratio/region_mean"] > 0.0);
}

#[test]
fn a_second_inner_epoch_moves_further_and_compares_once() {
    let request = goal_request(&Toy::small(1), 1, 4, 7);
    let (mut once, mut twice) = (Toy::small(1), Toy::small(1));
    run(&mut once, &training(|_| {}), &request);
    let m = run(&mut twice, &training(|c| c.inner_epochs = 2), &request);
    assert_eq!((once.updates, twice.updates), (1, 2));
    assert_ne!(once.weights, twice.weights);
    assert_eq!(m["sampling/sampling_logp_difference/max"], 0.0);
}

#[test]
fn gradients_are_clipped_to_the_norm() {
    let request = goal_request(&Toy::small(1), 1, 4, 7);
    let norm = run(&mut Toy::small(1), &training(|_| {}), &request)["grad_norm"];
    let weights = |max: f64| {
        let mut toy = Toy::small(1);
        // AdamW's first step hardly depends on the gradient's length: a large eps makes it show.
        run(&mut toy, &training(|c| (c.max_grad_norm, c.optimizer.eps) = (max, 1.0)), &request);
        toy.weights
    };
    assert_eq!(weights(norm * 2.0), weights(0.0), "below the bound nothing changes");
    assert_ne!(weights(norm / 2.0), weights(0.0));
}

#[test]
fn groups_without_signal_leave_the_gradient_and_skip_the_backward_pass() {
    let mut toy = Toy::small(1);
    let mut request = goal_request(&toy, 1, 4, 7);
    let mut digests = Vec::new();
    for group in &mut request.groups {
        group.samples.iter_mut().for_each(|s| s.score.score = 1.0);
        group.advantages = vec![0.0; 4];
        digests.push(cohort_learner::aggregator::payload_digest(group).unwrap());
    }
    request.intent.digests = digests;
    let m = run(&mut toy, &training(|_| {}), &request);
    assert_eq!((m["grad_norm"], m["frac_reward_zero_std"], toy.backwards), (0.0, 1.0, 0));
    assert!(m["exactness/tokens"] > 0.0, "it is compared all the same");
}

#[test]
fn the_kl_term_pulls_to_the_reference() {
    let with_kl = |beta: f64| {
        training(|c| {
            c.loss = LossConfig::DrGrpo { clip_low: 0.2, clip_high: 0.2, beta, max_completion_length: 8 };
        })
    };
    let (mut toy, mut reference) = (Toy::small(1), Toy::small(2));
    let request = goal_request(&toy, 1, 4, 7);
    let distance = |toy: &mut Toy, reference: &mut Toy| {
        let plan = step::plan(&with_kl(0.1), &request).unwrap();
        let logp_ref = step::reference_logp(reference, &plan, &mut || {}).unwrap();
        let m = step::run(toy, &with_kl(5.0), &request, Some(&logp_ref), &mut |_, _| {}).unwrap();
        m.into_iter().find(|(name, _)| name == "kl").unwrap().1
    };
    let first = distance(&mut toy, &mut reference);
    let mut last = first;
    for _ in 0..20 {
        last = distance(&mut toy, &mut reference);
    }
    assert!(first > 0.0 && last < first * 0.8, "kl from {first} to {last}");
}

#[test]
fn what_is_not_finite_stops_the_step_before_its_update() {
    let request = goal_request(&Toy::small(1), 1, 4, 7);
    let parts = step::plan(&training(|_| {}), &request).unwrap().micro_batches().count();
    assert!(parts > 2, "{parts} micro-batches");
    let mut toy = Toy { poison_forward: Some(1), ..Toy::small(1) };
    let failure = step::run(&mut toy, &training(|_| {}), &request, None, &mut |_, _| {}).unwrap_err();
    assert!(failure.error.to_string().starts_with("log-prob is NaN at group "), "{failure}");
    assert!(failure.error.is_fatal() && failure.updates == 0);
    assert_eq!((toy.weights.clone(), toy.updates), (Toy::small(1).weights, 0));
    assert!(toy.gradients().unwrap().0.values().all(|t| t.data.iter().all(|&g| g == 0.0)), "no gradient is left behind");

    // In a later inner epoch the weights have moved: the failure says so.
    let mut toy = Toy { poison_forward: Some(parts), ..Toy::small(1) };
    let failure = step::run(&mut toy, &training(|c| c.inner_epochs = 2), &request, None, &mut |_, _| {}).unwrap_err();
    assert_eq!((failure.updates, toy.updates), (1, 1));
}

#[test]
fn an_overflowing_ratio_is_refused() {
    let mut toy = Toy::small(1);
    let mut request = goal_request(&toy, 1, 1, 7);
    // A stored log-prob that low makes the ratio overflow; with a negative advantage nothing clips it.
    let scored = &mut request.groups[0].samples[1];
    scored.trajectory.logp.0.iter_mut().zip(&scored.trajectory.mask).filter(|(_, m)| **m == 1).for_each(|(l, _)| *l = -1e5);
    request.groups[0].advantages[1] = -1.0;
    request.intent.digests[0] = cohort_learner::aggregator::payload_digest(&request.groups[0]).unwrap();
    let failure = step::run(&mut toy, &training(|_| {}), &request, None, &mut |_, _| {}).unwrap_err();
    assert!(matches!(failure.error, StepError::NonFinite { what: "loss gradient", .. }), "{failure}");
    assert_eq!(toy.weights, Toy::small(1).weights);
}

#[test]
fn a_request_that_contradicts_its_intent_is_refused() {
    let toy = Toy::small(1);
    let good = goal_request(&toy, 1, 2, 7);
    type Edit = fn(&mut StepRequest);
    let edits: [(&str, Edit); 4] = [
        ("digest", |r| r.groups[1].samples[0].score.score += 1.0),
        ("names", |r| r.groups.swap(0, 1)),
        ("advantages", |r| r.groups[0].advantages.truncate(3)),
        ("logp", |r| r.groups[0].samples[0].trajectory.logp.0[2] = f32::NAN),
    ];
    for (word, edit) in edits {
        let mut request = good.clone();
        edit(&mut request);
        let error = step::plan(&training(|_| {}), &request).unwrap_err();
        assert!(matches!(error, StepError::Intent { .. }) && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn supervised_training_goes_through_the_same_update() {
    let mut toy = Toy::small(3);
    let rows: Vec<Sample> = (0..20).map(|i| Sample::supervised(i, &[1, 2, 3, 4, 5], &[0, 1, 1, 1, 1])).collect();
    let plan = Plan::new(rows, Packing { micro_batch_tokens: 32, share_prompts: true });
    let optimizer = training(|_| {}).optimizer;
    let objective = Objective { loss: &Sft, optimizer, learning_rate: 0.05, max_grad_norm: Some(1.0), compare: false, draws: 0 };
    for _ in 0..100 {
        step::update(&mut toy, &plan, &objective, None, None, &mut Solo, &mut |_| {}).unwrap();
    }
    assert_eq!((1..5).map(|t| toy.likeliest(t)).collect::<Vec<_>>(), [2, 3, 4, 5]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The same request gives the same bits, whatever budget it was packed for before and however often it is done.
    #[test]
    fn a_step_is_a_pure_function(seed in 1u64..1000, goal in 0u32..11, groups in 1u64..5, budget in 8u32..200) {
        let training = training(|c| c.micro_batch_tokens = budget);
        let request = goal_request(&Toy::small(seed), 1, groups, goal);
        let (mut a, mut b) = (Toy::small(seed), Toy::small(seed));
        prop_assert_eq!(run(&mut a, &training, &request), run(&mut b, &training, &request));
        prop_assert_eq!(&a.weights, &b.weights);
        prop_assert_eq!(a.optimizer_export().unwrap(), b.optimizer_export().unwrap());
    }

    /// Logical shards change rounding at most, and each number of them gives its own bits again and again.
    #[test]
    fn logical_shards_do_not_change_the_loss(seed in 1u64..1000, shards in 2u32..6) {
        let request = goal_request(&Toy::small(seed), 1, 6, 7);
        let take = |shards: u32| {
            let mut toy = Toy::small(seed);
            let metrics = run(&mut toy, &training(|c| (c.groups_per_step, c.logical_shards) = (6, shards)), &request);
            (toy.weights, metrics)
        };
        let ((_, whole), (weights, cut)) = (take(1), take(shards));
        for name in ["loss", "grad_norm", "entropy", "exactness/tokens", "num_tokens"] {
            prop_assert!((whole[name] - cut[name]).abs() < 1e-5 * whole[name].abs().max(1.0), "{}: {} and {}", name, whole[name], cut[name]);
        }
        prop_assert_eq!(take(shards), (weights, cut));
    }

    /// The divisors are the step's: other micro-batches change rounding at most.
    #[test]
    fn micro_batches_do_not_change_the_loss(seed in 1u64..1000, budget in 8u32..100) {
        let request = goal_request(&Toy::small(seed), 1, 3, 7);
        let (mut whole, mut parts) = (Toy::small(seed), Toy::small(seed));
        let a = run(&mut whole, &training(|c| c.micro_batch_tokens = 10_000), &request);
        let b = run(&mut parts, &training(|c| c.micro_batch_tokens = budget), &request);
        for name in ["loss", "grad_norm", "entropy", "reward"] {
            prop_assert!((a[name] - b[name]).abs() < 1e-5 * a[name].abs().max(1.0), "{}: {} and {}", name, a[name], b[name]);
        }
    }
}

#[test]
fn the_toy_is_a_model() {
    // A numerical check of the toy itself, so that what it proves counts.
    let mut toy = Toy::small(5);
    let plan = Plan::new(
        [Sample::supervised(0, &[1, 2, 3, 2, 1], &[0, 1, 0, 1, 1])],
        Packing { micro_batch_tokens: 64, share_prompts: true },
    );
    let batch = &plan.shards[0][0].batch;
    let loss = |toy: &mut Toy| {
        let f = toy.forward(batch, false).unwrap();
        f.logp.iter().zip(&f.entropy).map(|(&l, &e)| f64::from(l) * 1.5 - f64::from(e) * 0.7).sum::<f64>()
    };
    toy.forward(batch, true).unwrap();
    toy.backward(cohort_engine::Upstream { d_logp: &[1.5; 3], d_entropy: Some(&[-0.7; 3]) }).unwrap();
    let grads = toy.gradients().unwrap();
    for spec in small_spec().tensors() {
        for i in 0..grads.0[&spec.name].data.len() {
            let at = |h: f32| {
                let mut moved = toy.clone();
                moved.weights.0.get_mut(&spec.name).unwrap().data[i] += h;
                loss(&mut moved)
            };
            let difference = (at(1e-3) - at(-1e-3)) / 2e-3;
            let grad = f64::from(grads.0[&spec.name].data[i]);
            assert!((difference - grad).abs() < 2e-3, "{}[{i}]: {difference} and {grad}", spec.name);
        }
    }
}
