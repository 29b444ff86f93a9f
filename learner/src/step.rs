//! One step: groups, micro-batches, forward, loss, backward, gradient norm, update.
//!
//! Invariants
//! - **S1** a step is a pure function of the engine's weights and moments and of the request.
//! - **S2** before its first update, every sampled token's log-prob is compared with the one stored by the sampler; those that
//!   the step's base policy drew must be equal, others are counted apart ([`Origin`]). Where the training pass draws
//!   (dropout), they are those of a pass that does not.
//! - **S3** a value that is not finite stops the step before the update it would have entered; weights and moments then
//!   are those after [`StepFailure::updates`] updates, so with 0 the state is as before the step.
use crate::aggregator::{payload_digest, stats};
use crate::algo::correction::{Correction, weights};
use crate::algo::{Loss, LossInput};
use crate::batching::{MicroBatch, Origin, Plan};
use crate::metrics::Tally;
use crate::training::Training;
use cohort_actors::crash::{LEARNER_BACKWARD, crash_point};
use cohort_engine::{AdamW, Backend, EngineError, Forward, Upstream};
use cohort_kernels::sampling::key;
use cohort_protocol::messages::learner::{Fault, StepRequest};
use cohort_protocol::{GroupId, SampleIx};
use thiserror::Error;

/// Does a step and gives its metrics; the engine then holds the next version.
///
/// `logp_ref` are the reference's log-probs ([`reference_logp`]) where the loss needs them. `watch` is called after each
/// micro-batch with the inner epoch and its index.
pub fn run(
    engine: &mut dyn Backend,
    training: &Training,
    request: &StepRequest,
    logp_ref: Option<&[Vec<f32>]>,
    watch: &mut dyn FnMut(u32, usize),
) -> Result<Vec<(String, f64)>, StepFailure> {
    let plan = plan(training, request).map_err(StepFailure::untouched)?;
    let mut metrics = stats::of_groups(&request.groups, request.intent.base);
    let mut proximal = training.correction.as_deref().map(Proximal::new);
    for epoch in 0..training.inner_epochs {
        let objective = Objective {
            loss: training.loss.as_ref(),
            optimizer: training.optimizer,
            learning_rate: training.learning_rate(request.intent.step, epoch),
            max_grad_norm: training.max_grad_norm,
            compare: epoch == 0,
            draws: key(training.seed, [low(request.intent.step.0), high(request.intent.step.0), epoch, 0]),
        };
        let mut watch = |index| {
            watch(epoch, index);
            if (epoch, index) == (0, 0) {
                crash_point(LEARNER_BACKWARD);
            }
        };
        let epoch_metrics = update(engine, &plan, &objective, logp_ref, proximal.as_mut(), &mut watch)
            .map_err(|error| StepFailure { error, updates: epoch })?;
        metrics.merge(&epoch_metrics);
    }
    Ok(metrics.finish())
}

/// Checks a request against its own intent and cuts it into micro-batches.
pub fn plan(training: &Training, request: &StepRequest) -> Result<Plan, StepError> {
    let (intent, groups) = (&request.intent, &request.groups);
    let ids: Vec<GroupId> = groups.iter().map(|g| g.group).collect();
    if intent.groups != ids || intent.digests.len() != ids.len() {
        return Err(StepError::Intent { why: format!("it names {:?} and carries {ids:?}", intent.groups) });
    }
    for (group, want) in groups.iter().zip(&intent.digests) {
        let id = group.group;
        if group.samples.len() != group.advantages.len() {
            let (samples, advantages) = (group.samples.len(), group.advantages.len());
            return Err(StepError::Intent { why: format!("group {id} has {samples} samples and {advantages} advantages") });
        }
        for scored in &group.samples {
            scored.trajectory.validate().map_err(|e| StepError::Intent { why: e.to_string() })?;
        }
        let got = payload_digest(group).map_err(|e| StepError::Intent { why: e.to_string() })?;
        if got != *want {
            return Err(StepError::Intent { why: format!("group {id} has digest {got}, the intent says {want}") });
        }
    }
    let plan = Plan::of_groups(groups, intent.base, training.packing);
    if plan.totals.tokens == 0 { Err(StepError::NoTokens { samples: plan.totals.sequences }) } else { Ok(plan) }
}

/// Log-probs of every target under the reference, by micro-batch; `watch` is called after each.
pub fn reference_logp(reference: &mut dyn Backend, plan: &Plan, watch: &mut dyn FnMut()) -> Result<Vec<Vec<f32>>, StepError> {
    let logp = |part: &MicroBatch| {
        let forward = reference.forward(&part.batch, false).map_err(engine_error("reference forward"))?;
        watch();
        Ok(forward.logp)
    };
    plan.micro_batches.iter().map(logp).collect()
}

/// What an update minimises, and how.
#[derive(Debug, Clone, Copy)]
pub struct Objective<'a> {
    /// The loss.
    pub loss: &'a dyn Loss,
    /// AdamW's constants.
    pub optimizer: AdamW,
    /// Learning rate.
    pub learning_rate: f64,
    /// Gradients are scaled down to this norm.
    pub max_grad_norm: Option<f64>,
    /// Whether to compare log-probs with the stored ones.
    pub compare: bool,
    /// Key of what the training pass draws, where the engine draws.
    pub draws: u64,
}

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

/// One optimizer update over a whole plan. On an error the weights and moments are as before and no gradient is left.
pub fn update(
    engine: &mut dyn Backend,
    plan: &Plan,
    objective: &Objective<'_>,
    logp_ref: Option<&[Vec<f32>]>,
    proximal: Option<&mut Proximal<'_>>,
    watch: &mut dyn FnMut(usize),
) -> Result<Tally, StepError> {
    engine.zero_grad();
    let result =
        accumulate(engine, plan, objective, logp_ref, proximal, watch).and_then(|metrics| apply(engine, objective, metrics));
    if result.is_err() {
        engine.zero_grad();
    }
    result
}

fn accumulate(
    engine: &mut dyn Backend,
    plan: &Plan,
    objective: &Objective<'_>,
    logp_ref: Option<&[Vec<f32>]>,
    mut proximal: Option<&mut Proximal<'_>>,
    watch: &mut dyn FnMut(usize),
) -> Result<Tally, StepError> {
    let mut metrics = Tally::default();
    for (index, part) in plan.micro_batches.iter().enumerate() {
        let draws = engine.draws();
        let mut exact = None;
        if objective.compare && draws {
            // What the sampler stored, and what a correction compares with it, are log-probs without draws.
            let forward = engine.forward(&part.batch, false).map_err(engine_error("forward"))?;
            check_forward(part, &forward)?;
            compare(part, &forward, &mut metrics);
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
        if objective.compare && !draws {
            compare(part, &forward, &mut metrics);
        }
        let columns = Columns::new(part, &forward, logp_ref.map(|l| &l[index][..]), |logp| {
            proximal.as_deref_mut().map(|proximal| proximal.of(index, part, exact.as_deref().unwrap_or(logp)))
        });
        let (d_logp, d_entropy) = gradient(plan, part, &columns, objective, &mut metrics)?;
        // A group without signal has gradient 0 everywhere: its backward pass would add nothing.
        if d_entropy.is_some() || d_logp.iter().any(|&d| d != 0.0) {
            engine.backward(Upstream { d_logp: &d_logp, d_entropy: d_entropy.as_deref() }).map_err(engine_error("backward"))?;
        }
        watch(index);
    }
    Ok(metrics.averaged())
}

fn apply(engine: &mut dyn Backend, objective: &Objective<'_>, mut metrics: Tally) -> Result<Tally, StepError> {
    let norm = engine.grad_norm().map_err(engine_error("gradient norm"))?;
    if !norm.is_finite() {
        return Err(StepError::NonFinite { what: "gradient norm", place: "the whole step".into(), value: norm });
    }
    let scale = match objective.max_grad_norm {
        Some(max) if norm > max => max / norm,
        _ => 1.0,
    };
    engine.update(&objective.optimizer, objective.learning_rate, scale).map_err(engine_error("update"))?;
    metrics.mean("grad_norm", norm, 1.0);
    metrics.mean("learning_rate", objective.learning_rate, 1.0);
    Ok(metrics)
}

/// Upstream gradients of one micro-batch, by log-prob and, where the loss asks for it, by entropy. `[N]`
type Gradients = (Vec<f32>, Option<Vec<f32>>);

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

const fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "gradients are rounded to the engine's precision; overflow is checked")]
fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

fn engine_error(during: &'static str) -> impl Fn(EngineError) -> StepError {
    move |source| match source {
        EngineError::NonFinite(why) => StepError::NonFinite { what: during, place: why, value: f64::NAN },
        source => StepError::Engine { during, source },
    }
}

/// Why a step was not taken.
#[derive(Debug, Error, Clone)]
pub enum StepError {
    /// The groups are not those of the intent: a fault of the ledger or of a disk. Stop.
    #[error("the request contradicts its intent: {why}")]
    Intent {
        /// How.
        why: String,
    },
    /// There is nothing to learn from. Stop.
    #[error("none of the {samples} samples of the step has a sampled token; check the agent's prompt length and max_new_tokens")]
    NoTokens {
        /// Samples of the step.
        samples: u64,
    },
    /// A value is not finite. Stop: the same step would fail again.
    #[error("{what} is {value} at {place}; the step was not taken: lower training.learning_rate or training.max_grad_norm")]
    NonFinite {
        /// Which value.
        what: &'static str,
        /// Where.
        place: String,
        /// What it is.
        value: f64,
    },
    /// The engine failed.
    #[error("{during}: {source}")]
    Engine {
        /// In which call.
        during: &'static str,
        /// Its reason.
        source: EngineError,
    },
}

impl StepError {
    /// Whether the same request would fail again.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Engine { source: EngineError::Capacity(_), .. })
    }

    /// What is to blame: the engine and values that are not finite are neither the request's fault nor the configuration's.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NonFinite { .. } | Self::Engine { .. } => Fault::Compute,
            _ => Fault::Worker,
        }
    }
}

/// A step that was not completed.
#[derive(Debug, Error, Clone)]
#[error("{error}")]
pub struct StepFailure {
    /// Why.
    pub error: StepError,
    /// Inner epochs whose update was done: above 0 the weights belong to no version and must be loaded again.
    pub updates: u32,
}

impl StepFailure {
    fn untouched(error: StepError) -> Self {
        Self { error, updates: 0 }
    }
}
