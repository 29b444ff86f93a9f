//! The gradient of a step's own shards: forward, loss, backward, micro-batch by micro-batch.
use super::error::{StepError, engine_error};
use super::{Objective, high, low, summing};
use crate::algo::LossInput;
use crate::algo::correction::{Correction, weights};
use crate::batching::{MicroBatch, Origin, Plan};
use crate::collective::Collective;
use crate::metrics::Tally;
use crate::shards::GradientTree;
use cohort_engine::{Backend, EngineError, Forward, Upstream};
use cohort_kernels::sampling::key;
use cohort_protocol::{GroupId, SampleIx};

/// The policy that a step starts from, which a correction holds against the one that sampled. Its log-probs are those of the
/// first inner epoch's own forward pass, which comes before any update: no other pass is needed.
#[derive(Debug)]
pub struct Proximal<'a> {
    correction: &'a dyn Correction,
    /// By micro-batch.
    logp: Vec<Vec<f64>>,
}

impl<'a> Proximal<'a> {
    /// Of a step that has not begun.
    #[must_use]
    pub fn new(correction: &'a dyn Correction) -> Self {
        Self { correction, logp: Vec::new() }
    }

    /// Log-probs of a micro-batch, and the factors of its tokens' loss. `logp` are the current ones.
    fn of(&mut self, index: usize, part: &MicroBatch, logp: &[f64]) -> (Vec<f64>, Vec<f64>) {
        if index == self.logp.len() {
            self.logp.push(logp.to_vec());
        }
        let prox = self.logp[index].clone();
        let factors = weights(self.correction, &prox, &widen(&part.logp_sampled));
        (prox, factors)
    }
}

/// What the loss of a step reads besides the forward pass itself.
pub(super) struct Given<'a, 'p> {
    /// The reference's log-probs, by micro-batch.
    pub(super) logp_ref: Option<&'a [Vec<f32>]>,
    /// Where a correction holds the base policy against the one that sampled.
    pub(super) proximal: Option<&'a mut Proximal<'p>>,
}

/// Leaves the sum of every rank's shards in the engine's gradients, each shard accumulated apart; gives rank 0 the metrics of all.
pub(super) fn accumulate(
    engine: &mut dyn Backend,
    plan: &Plan,
    objective: &Objective<'_>,
    mut given: Given<'_, '_>,
    ranks: &mut dyn Collective,
    watch: &mut dyn FnMut(usize),
) -> Result<Tally, StepError> {
    let mut tree = GradientTree::default();
    let (mut tallies, mut index) = (Vec::with_capacity(plan.shards.len()), 0);
    let mut last = None;
    for (shard, parts) in plan.shards.iter().enumerate() {
        let mut metrics = Tally::default();
        let ends = shard + 1 == plan.shards.len();
        for (at, part) in parts.iter().enumerate() {
            ranks.check()?;
            let upstream = micro_batch(engine, (plan, index, part), objective, &mut given, &mut metrics)?;
            if ends && at + 1 == parts.len() {
                last = upstream;
                break;
            }
            if let Some((d_logp, d_entropy)) = upstream {
                let upstream = Upstream { d_logp: &d_logp, d_entropy: d_entropy.as_deref() };
                engine.backward(upstream).map_err(engine_error("backward"))?;
            }
            watch(index);
            index += 1;
        }
        tallies.push(metrics);
        if !ends {
            tree.close(engine, false).map_err(engine_error("sum of shards"))?;
        }
    }
    let metrics = summing::finish(engine, tree, tallies, last, ranks)?;
    if index < plan.micro_batches().count() {
        watch(index);
    }
    Ok(metrics)
}

/// Log-probs, loss and its gradient; `None` where there is nothing to reverse.
fn micro_batch(
    engine: &mut dyn Backend,
    (plan, index, part): (&Plan, usize, &MicroBatch),
    objective: &Objective<'_>,
    given: &mut Given<'_, '_>,
    metrics: &mut Tally,
) -> Result<Option<Gradients>, StepError> {
    let draws = engine.draws();
    let mut exact = None;
    if objective.compare && draws {
        // What the sampler stored, and what a correction compares with it, are log-probs without draws.
        let forward = engine.forward(&part.batch, false).map_err(engine_error("forward"))?;
        check_forward(part, &forward)?;
        compare(part, &forward, metrics);
        exact = Some(widen(&forward.logp));
    }
    if draws {
        let own = |(GroupId(group), SampleIx(sample)): &(GroupId, SampleIx)| {
            key(objective.draws, [low(*group), high(*group), u32::from(*sample), 0])
        };
        engine.key_draws(&part.ids.iter().map(own).collect::<Vec<_>>());
    }
    let forward = engine.forward(&part.batch, true).map_err(engine_error("forward"))?;
    check_forward(part, &forward)?;
    metrics.sum("perf/recalled_tokens", forward.recalled as f64);
    if objective.compare && !draws {
        compare(part, &forward, metrics);
    }
    let columns = Columns::new(part, &forward, given.logp_ref.map(|l| &l[index][..]), |logp| {
        given.proximal.as_deref_mut().map(|proximal| proximal.of(index, part, exact.as_deref().unwrap_or(logp)))
    });
    let (d_logp, d_entropy) = gradient(plan, part, &columns, objective, metrics)?;
    // A group without signal has gradient 0 everywhere: its backward pass would add nothing.
    let reversed = d_entropy.is_some() || d_logp.iter().any(|&d| d != 0.0);
    Ok(reversed.then_some((d_logp, d_entropy)))
}

/// Upstream gradients of one micro-batch, by log-prob and, where the loss asks for it, by entropy. `[N]`
pub(super) type Gradients = (Vec<f32>, Option<Vec<f32>>);

/// What the loss of one micro-batch reads, in f64. `[N]`
struct Columns {
    logp: Vec<f64>,
    logp_old: Vec<f64>,
    logp_ref: Option<Vec<f64>>,
    weight: Option<Vec<f64>>,
    entropy: Vec<f64>,
}

impl Columns {
    /// `corrected` gives the proximal log-probs and the factors of a correction, where there is one.
    fn new(
        part: &MicroBatch,
        forward: &Forward,
        logp_ref: Option<&[f32]>,
        corrected: impl FnOnce(&[f64]) -> Option<(Vec<f64>, Vec<f64>)>,
    ) -> Self {
        let logp = widen(&forward.logp);
        let (logp_old, weight) = match corrected(&logp) {
            Some((prox, weight)) => (prox, Some(weight)),
            None => (widen(&part.logp_old), None),
        };
        Self { logp, logp_old, logp_ref: logp_ref.map(widen), weight, entropy: widen(&forward.entropy) }
    }
}

fn gradient(
    plan: &Plan,
    part: &MicroBatch,
    columns: &Columns,
    objective: &Objective<'_>,
    metrics: &mut Tally,
) -> Result<Gradients, StepError> {
    let out = objective.loss.evaluate(&LossInput {
        logp: &columns.logp,
        logp_old: &columns.logp_old,
        logp_ref: columns.logp_ref.as_deref(),
        weight: columns.weight.as_deref(),
        entropy: &columns.entropy,
        mask: &vec![true; columns.logp.len()],
        sequences: &part.sequences,
        advantages: &part.advantages,
        totals: plan.totals,
    });
    let (d_logp, d_entropy) = (narrow(&out.d_logp), out.d_entropy.as_deref().map(narrow));
    for (what, values) in [("loss gradient", Some(&d_logp)), ("entropy gradient", d_entropy.as_ref())] {
        if let Some(i) = values.and_then(|v| v.iter().position(|d| !d.is_finite())) {
            let (old, new) = (columns.logp_old[i], columns.logp[i]);
            let place = format!("{}, whose log-prob went from {old} to {new}", place(part, i));
            return Err(StepError::NonFinite { what, place, value: values.map_or(0.0, |v| f64::from(v[i])) });
        }
    }
    if !out.loss.is_finite() {
        return Err(StepError::NonFinite { what: "loss", place: place(part, 0), value: out.loss });
    }
    metrics.sum("loss", out.loss);
    metrics.merge(&out.metrics);
    Ok((d_logp, d_entropy))
}

/// S2: how far the learner's log-probs are from the sampler's.
fn compare(part: &MicroBatch, forward: &Forward, metrics: &mut Tally) {
    let stored = part.logp_old.iter().zip(&part.logp_sampled).zip(&part.origin);
    for (&logp, ((&old, &sampled), origin)) in forward.logp.iter().zip(stored) {
        let difference = (f64::from(logp) - f64::from(old)).abs();
        if *origin == Origin::Base {
            metrics.max("exactness/logp_difference_max", difference);
        }
        metrics.sum("exactness/tokens", count(*origin == Origin::Base));
        metrics.sum("exactness/stale_tokens", count(*origin == Origin::Stale));
        metrics.sum("exactness/inexact_tokens", count(*origin == Origin::Inexact));
        metrics.mean("sampling/sampling_logp_difference/mean", difference, 1.0);
        metrics.max("sampling/sampling_logp_difference/max", difference);
        let ratio = crate::exact::exp(f64::from(logp) - f64::from(sampled));
        metrics.min("sampling/importance_sampling_ratio/min", ratio);
        metrics.mean("sampling/importance_sampling_ratio/mean", ratio, 1.0);
        metrics.max("sampling/importance_sampling_ratio/max", ratio);
    }
}

fn count(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn check_forward(part: &MicroBatch, forward: &Forward) -> Result<(), StepError> {
    let want = part.logp_old.len();
    for (what, values) in [("log-prob", &forward.logp), ("entropy", &forward.entropy)] {
        if values.len() != want {
            let why = format!("the engine gave {} values of {what} for {want} targets", values.len());
            return Err(StepError::Engine { during: "forward", source: EngineError::Device(why) });
        }
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(StepError::NonFinite { what, place: place(part, i), value: f64::from(values[i]) });
        }
    }
    Ok(())
}

fn place(part: &MicroBatch, i: usize) -> String {
    let (group, SampleIx(sample)) = part.owner(i);
    format!("group {group}, sample {sample}")
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "gradients are rounded to the engine's precision; overflow is checked")]
fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}
