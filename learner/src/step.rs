//! One step: groups, micro-batches, forward, loss, backward, sum over shards and ranks, gradient norm, update.
//!
//! Invariants
//! - **S1** a step is a pure function of the engine's weights and moments and of the request: whatever ranks take it, equal
//!   `logical_shards` give equal bits ([`crate::shards`]).
//! - **S2** before its first update, every sampled token's log-prob is compared with the one stored by the sampler; those that
//!   the step's base policy drew must be equal, others are counted apart ([`Origin`](crate::batching::Origin)). Where the
//!   training pass draws (dropout), they are those of a pass that does not.
//! - **S3** a value that is not finite stops the step before the update it would have entered, on every rank; weights and
//!   moments then are those after [`StepFailure::updates`] updates, so with 0 the state is as before the step. A rank that is
//!   lost stops it too; where ranks keep the optimizer's state in parts, perhaps in the middle of the update, which then counts.
mod error;
mod gradient;
mod summing;

pub use error::{StepError, StepFailure};
pub use gradient::Proximal;

use crate::aggregator::{payload_digest, stats};
use crate::algo::{Denominators, Loss};
use crate::batching::{MicroBatch, Plan};
use crate::collective::{Collective, Solo};
use crate::metrics::Tally;
use crate::shards;
use crate::training::Training;
use cohort_actors::crash::{LEARNER_BACKWARD, crash_point};
use cohort_engine::{AdamW, Backend, EngineError, Partition};
use cohort_kernels::sampling::key;
use cohort_protocol::messages::learner::StepRequest;
use cohort_protocol::{GroupId, GroupPayload, StepIntent};
use error::engine_error;
use gradient::{Given, accumulate};
use std::ops::Range;

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
    let epochs = take(engine, training, &request.intent, &plan, logp_ref, &mut Solo, watch)?;
    Ok(summary(request, &epochs))
}

/// A rank's part of a step, over the shards of `plan`; every rank of `ranks` takes its own at the same time, and each engine
/// then holds the next version. Gives rank 0 the metrics of each inner epoch.
pub fn take(
    engine: &mut dyn Backend,
    training: &Training,
    intent: &StepIntent,
    plan: &Plan,
    logp_ref: Option<&[Vec<f32>]>,
    ranks: &mut dyn Collective,
    watch: &mut dyn FnMut(u32, usize),
) -> Result<Vec<Tally>, StepFailure> {
    own_part(engine, ranks).map_err(StepFailure::untouched)?;
    // Nobody computes before everybody stands.
    ranks.barrier().map_err(|error| StepFailure::untouched(error.into()))?;
    if training.rechecks(intent.step) {
        engine.forget_sampling();
    }
    let mut epochs = Vec::new();
    let mut proximal = training.correction.as_deref().map(Proximal::new);
    for epoch in 0..training.inner_epochs {
        let objective = Objective {
            loss: training.loss.as_ref(),
            optimizer: training.optimizer,
            learning_rate: training.learning_rate(intent.step, epoch),
            max_grad_norm: training.max_grad_norm,
            compare: epoch == 0,
            draws: key(training.seed, [low(intent.step.0), high(intent.step.0), epoch, 0]),
        };
        let mut watch = |index| {
            watch(epoch, index);
            if (epoch, index) == (0, 0) {
                crash_point(LEARNER_BACKWARD);
            }
        };
        let metrics = update(engine, plan, &objective, logp_ref, proximal.as_mut(), ranks, &mut watch)
            .map_err(|failure| StepFailure { updates: epoch + failure.updates, ..failure })?;
        epochs.push(metrics);
    }
    Ok(epochs)
}

/// Whether the engine keeps the whole of the optimizer's state, or this rank's part of it.
fn own_part(engine: &dyn Backend, ranks: &dyn Collective) -> Result<(), StepError> {
    let (part, rank, world) = (engine.partition(), ranks.rank(), ranks.world());
    if part == Partition::WHOLE || Some(part) == Partition::new(rank, world) {
        return Ok(());
    }
    let why = format!("rank {rank} of {world} keeps part {} of {} of the optimizer's state", part.rank(), part.of());
    Err(StepError::Engine { during: "the beginning of a step", source: EngineError::Input(why) })
}

/// The metrics of a whole step: its groups', then those of each inner epoch.
#[must_use]
pub fn summary(request: &StepRequest, epochs: &[Tally]) -> Vec<(String, f64)> {
    let mut metrics = stats::of_groups(&request.groups, request.intent.base);
    epochs.iter().for_each(|epoch| metrics.merge(epoch));
    metrics.finish()
}

/// Checks a request against its own intent and cuts it into shards and micro-batches.
pub fn plan(training: &Training, request: &StepRequest) -> Result<Plan, StepError> {
    let plan = part(training, &request.intent, 0..training.logical_shards, &request.groups)?;
    if plan.totals.tokens == 0 { Err(StepError::NoTokens { samples: plan.totals.sequences }) } else { Ok(plan) }
}

/// As [`plan`] for some shards of a step, of which `groups` are the groups and `totals` the whole step's divisors.
pub fn plan_part(
    training: &Training,
    intent: &StepIntent,
    shards: Range<usize>,
    groups: &[GroupPayload],
    totals: Denominators,
) -> Result<Plan, StepError> {
    Ok(Plan { totals, ..part(training, intent, shards, groups)? })
}

fn part(training: &Training, intent: &StepIntent, shards: Range<usize>, groups: &[GroupPayload]) -> Result<Plan, StepError> {
    let of = training.logical_shards;
    let whole = shards::groups(intent.groups.len(), of, &shards);
    let ids: Vec<GroupId> = groups.iter().map(|g| g.group).collect();
    if intent.groups.get(whole.clone()) != Some(&ids[..]) || intent.digests.len() != intent.groups.len() {
        return Err(StepError::Intent { why: format!("it names {:?} and carries {ids:?}", intent.groups.get(whole)) });
    }
    for (group, want) in groups.iter().zip(&intent.digests[whole.clone()]) {
        check_group(group, want)?;
    }
    let cut = |shard| {
        let range = shards::groups(intent.groups.len(), of, &(shard..shard + 1));
        &groups[range.start - whole.start..range.end - whole.start]
    };
    Ok(Plan::of_shards(shards.map(cut), intent.base, training.packing))
}

fn check_group(group: &GroupPayload, want: &str) -> Result<(), StepError> {
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
    Ok(())
}

/// Log-probs of every target under the reference, by micro-batch; `watch` is called after each.
pub fn reference_logp(reference: &mut dyn Backend, plan: &Plan, watch: &mut dyn FnMut()) -> Result<Vec<Vec<f32>>, StepError> {
    let logp = |part: &MicroBatch| {
        let forward = reference.forward(&part.batch, false).map_err(engine_error("reference forward"))?;
        watch();
        Ok(forward.logp)
    };
    plan.micro_batches().map(logp).collect()
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

/// One optimizer update over a whole plan; where `ranks` are several, over the plans of all of them. On an error no gradient is
/// left, and the weights and moments are as before, unless the failure counts an update: then they are no version's. Gives rank
/// 0 everyone's metrics.
pub fn update(
    engine: &mut dyn Backend,
    plan: &Plan,
    objective: &Objective<'_>,
    logp_ref: Option<&[Vec<f32>]>,
    proximal: Option<&mut Proximal<'_>>,
    ranks: &mut dyn Collective,
    watch: &mut dyn FnMut(usize),
) -> Result<Tally, StepFailure> {
    engine.zero_grad();
    let given = Given { logp_ref, proximal };
    let summed = accumulate(engine, plan, objective, given, ranks, watch);
    let result = summed.map_err(StepFailure::untouched).and_then(|metrics| apply(engine, objective, metrics.averaged(), ranks));
    if result.is_err() {
        engine.zero_grad();
    }
    result
}

fn apply(
    engine: &mut dyn Backend,
    objective: &Objective<'_>,
    mut metrics: Tally,
    ranks: &mut dyn Collective,
) -> Result<Tally, StepFailure> {
    let untouched = |during| move |error| StepFailure::untouched(engine_error(during)(error));
    let norm = engine.grad_norm().map_err(untouched("gradient norm"))?;
    if !norm.is_finite() {
        let place = "the whole step".into();
        return Err(StepFailure::untouched(StepError::NonFinite { what: "gradient norm", place, value: norm }));
    }
    let scale = match objective.max_grad_norm {
        Some(max) if norm > max => max / norm,
        _ => 1.0,
    };
    let (optimizer, rate) = (&objective.optimizer, objective.learning_rate);
    if engine.partition() == Partition::WHOLE {
        engine.update(optimizer, rate, scale).map_err(untouched("update"))?;
    } else {
        let exchanged = shards::update_parts(engine, (optimizer, rate, scale), ranks).map_err(untouched("update"))?;
        exchanged.map_err(|error| StepFailure { error: error.into(), updates: 1 })?;
    }
    metrics.mean("grad_norm", norm, 1.0);
    metrics.mean("learning_rate", objective.learning_rate, 1.0);
    Ok(metrics)
}

const fn low(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}
