//! How each job is done: on the engine's thread, on the disk, in the ring.
//!
//! Invariants
//! - **J1** a job that fails says what it leaves ([`Aftermath`]); only a load, a step with several inner epochs, and one of ranks
//!   that keep the optimizer's state in parts can leave weights that are no version.
//! - **J2** what is lost with another rank is not this learner's failure ([`Aftermath::LostWithRank`]), `TRIES` times without a new
//!   step in between.
use crate::batching::Plan;
use crate::checkpoint::{self, CheckpointError, OptimizerState, TrainState};
use crate::collective::{Collective, CollectiveError, Solo};
use crate::publish::publish;
use crate::ranks::{Moments, Team, TeamError};
use crate::shards;
use crate::state::{Aftermath, Failure, Job, Outcome};
use crate::step::{self, StepError};
use crate::training::Training;
use cohort_engine::{Backend, EngineError, EngineHandle, WeightRing};
use cohort_model::{ModelError, ModelFiles, WeightSet};
use cohort_protocol::messages::learner::{CheckpointRequest, Fault, Load, LoadFrom, PublishRequest, StepRequest};
use cohort_protocol::messages::ranks::Holding;
use cohort_protocol::{PolicyVersion, StepCommit};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;
use tracing::warn;

/// Tries of a step that loses a rank each time, after which the coordinator hears of it.
const TRIES: u32 = 10;

/// Metric: ranks that took the step.
const RANKS: &str = "perf/learner_ranks";

/// What jobs work on.
#[derive(Debug)]
pub struct Workshop {
    /// The policy.
    pub engine: EngineHandle,
    /// The frozen reference, where the loss needs one.
    pub reference: Option<EngineHandle>,
    /// Where rollout workers take weights from.
    pub ring: Arc<dyn WeightRing>,
    /// The plan.
    pub training: Training,
    /// The base model, and the files beside the weights of a checkpoint.
    pub model: ModelFiles,
    /// The run directory.
    pub run_dir: PathBuf,
    /// Micro-batches done since the start, those of the reference included.
    pub micro_batches: Arc<AtomicU64>,
    /// The followers, where this learner leads some.
    pub team: Option<Arc<Team>>,
    /// States lost with other ranks since the last new step.
    pub losses: AtomicU32,
}

impl Workshop {
    /// Does a job.
    pub async fn run(self: Arc<Self>, job: Job) -> Outcome {
        let done = match job {
            Job::Load(load) => self.load(load).await,
            Job::Step(request) => self.step(request).await,
            Job::Hash(commit) => self.hash(commit).await,
            Job::Publish(request) => self.publish(request).await,
            Job::Checkpoint(request) => self.checkpoint(request).await,
        };
        done.unwrap_or_else(Outcome::Failed)
    }

    async fn load(self: Arc<Self>, load: Load) -> Result<Outcome, Failure> {
        let (version, shop) = (load.version, self.clone());
        let (weights, optimizer) = blocking(move || shop.read(load)).await?;
        let imported = self.engine.with_backend(move |engine| {
            engine.zero_grad();
            engine.import(&weights)?;
            drop(weights);
            let Some(state) = optimizer else { return engine.optimizer_reset() };
            let (first, second, updates) = state.into_parts();
            engine.optimizer_import(&first, &second, updates)
        });
        imported.await.and_then(|done| done).map_err(|e| engine_failure(&e, Aftermath::WeightsLost))?;
        let (digest, sha256) = self.name(version).await?;
        Ok(Outcome::Loaded { version, digest, sha256 })
    }

    /// The weights that a load asks for and the optimizer's state, which the base model has none of.
    fn read(&self, load: Load) -> Result<(WeightSet, Option<OptimizerState>), Failure> {
        let (version, seed, weights, optimizer) = match load.from {
            LoadFrom::Base => (PolicyVersion(0), self.training.seed, self.start()?, None),
            LoadFrom::Checkpoint(dir) => {
                let state = checkpoint::load(&self.run_dir.join(dir), &self.model).map_err(|e| checkpoint_failure(&e))?;
                (state.version, state.seed, state.weights, Some(state.optimizer))
            }
        };
        let ours = (load.version, self.training.seed);
        if (version, seed) != ours {
            let error = format!("the state has version {version} and seed {seed}, the run asks for {} and {}", ours.0, ours.1);
            return Err(Failure { error, fatal: true, fault: Fault::Worker, aftermath: Aftermath::WeightsLost });
        }
        Ok((weights, optimizer))
    }

    /// What training begins with.
    fn start(&self) -> Result<WeightSet, Failure> {
        self.model.start(self.training.seed).map_err(|e| model_failure(&e))
    }

    /// With followers, as often as it takes to find ranks that stand to its end.
    async fn step(self: Arc<Self>, request: StepRequest) -> Result<Outcome, Failure> {
        let plan = step::plan(&self.training, &request).map_err(|e| step_failure(&e, Aftermath::Intact))?;
        let (request, plan) = (Arc::new(request), Arc::new(plan));
        let done = self.again(|| self.clone().attempt(request.clone(), plan.clone())).await;
        if !request.replay && matches!(done, Ok(Outcome::Stepped(_))) {
            self.losses.store(0, Ordering::Relaxed);
        }
        done
    }

    /// Does what needs the other ranks until none of them is lost on the way.
    async fn again<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Attempt>>,
    {
        let mut tries = 1;
        loop {
            let (why, aftermath) = match attempt().await {
                Ok(done) => return Ok(done),
                Err(Attempt::Failed(failure)) => return Err(failure),
                Err(Attempt::PartLost(why)) => return Err(self.lost(why)),
                Err(Attempt::Abandoned(why, aftermath)) => (why, aftermath),
            };
            if let Some(team) = &self.team {
                team.disband(&why).await;
            }
            if aftermath != Aftermath::Intact {
                return Err(self.lost(why.to_string()));
            }
            if tries == TRIES {
                return Err(step_failure(&why.into(), Aftermath::Intact));
            }
            tries += 1;
        }
    }

    /// J2.
    fn lost(&self, error: String) -> Failure {
        warn!(target: "cohort::learner", error, "state_lost");
        let again = self.losses.fetch_add(1, Ordering::Relaxed) + 1 < TRIES;
        let aftermath = if again { Aftermath::LostWithRank } else { Aftermath::WeightsLost };
        Failure { error, fatal: false, fault: Fault::Worker, aftermath }
    }

    async fn attempt(self: Arc<Self>, request: Arc<StepRequest>, plan: Arc<Plan>) -> Result<Outcome, Attempt> {
        let members = match &self.team {
            Some(team) => team.form(&self.engine, request.intent.base).await.map_err(of_team)?,
            None => Vec::new(),
        };
        let own = shards::of_rank(self.training.logical_shards, 0, members.len() + 1);
        let own = if members.is_empty() { plan.clone() } else { Arc::new(plan.as_ref().clone().part(own)) };
        let mut group: Box<dyn Collective> = match &self.team {
            Some(team) if !members.is_empty() => {
                let begun = team.begin(&members, &request, &plan).await;
                Box::new(begun.map_err(|why| abandoned(why.into(), Aftermath::Intact))?)
            }
            _ => Box::new(Solo),
        };
        let logp_ref = self.reference_logp(&own).await.inspect_err(|failure| group.abort(&failure.error));
        let logp_ref = logp_ref.map_err(Attempt::Failed)?;
        let (shop, version, asked) = (self.clone(), request.intent.base.next(), request.clone());
        let stepped = self.engine.advance(version.0, move |engine| {
            let mut watch = |_, _| {
                shop.micro_batches.fetch_add(1, Ordering::Relaxed);
            };
            let logp_ref = logp_ref.as_deref();
            let taken = step::take(engine, &shop.training, &asked.intent, &own, logp_ref, group.as_mut(), &mut watch);
            // Where it is this rank that failed, the others hear of it.
            taken.inspect_err(|failure| group.abort(&failure.to_string()))
        });
        // Named in the same breath: a sampler that shares the engine never draws from weights without a name.
        let (epochs, label) =
            stepped.await.map_err(|e| Attempt::Failed(engine_failure(&e, Aftermath::WeightsLost)))?.map_err(|failure| {
                let aftermath = if failure.updates == 0 { Aftermath::Intact } else { Aftermath::WeightsLost };
                abandoned(failure.error, aftermath)
            })?;
        if let Some(team) = &self.team {
            let made = Holding { version, digest: label.digest };
            team.end(&members, made).await.map_err(|(rank, digest)| Attempt::Failed(diverged(&request, made, &rank, digest)))?;
        }
        let mut metrics = step::summary(&request, &epochs);
        metrics.push((RANKS.to_owned(), (members.len() + 1) as f64));
        let weights_sha256 = if request.hash { self.name(version).await.map_err(Attempt::Failed)?.1 } else { String::new() };
        let weights_digest = label.digest;
        Ok(Outcome::Stepped(StepCommit { step: request.intent.step, version, weights_sha256, weights_digest, metrics }))
    }

    /// The reference's log-probs, where the loss needs them.
    async fn reference_logp(&self, plan: &Arc<Plan>) -> Result<Option<Vec<Vec<f32>>>, Failure> {
        let Some(reference) = self.reference.as_ref().filter(|_| self.training.loss.needs_reference()) else { return Ok(None) };
        let (plan, done) = (plan.clone(), self.micro_batches.clone());
        let forward = reference.with_backend(move |backend: &mut dyn Backend| {
            step::reference_logp(backend, &plan, &mut || {
                done.fetch_add(1, Ordering::Relaxed);
            })
        });
        let logp = forward.await.map_err(|e| engine_failure(&e, Aftermath::Intact))?;
        logp.map(Some).map_err(|e| step_failure(&e, Aftermath::Intact))
    }

    async fn hash(self: Arc<Self>, commit: StepCommit) -> Result<Outcome, Failure> {
        let (_, weights_sha256) = self.name(commit.version).await?;
        Ok(Outcome::Stepped(StepCommit { weights_sha256, ..commit }))
    }

    async fn publish(self: Arc<Self>, request: PublishRequest) -> Result<Outcome, Failure> {
        let started = Instant::now();
        let label = publish(&self.engine, self.ring.clone(), request.slot, request.version).await;
        let digest = label.map_err(|e| engine_failure(&e, Aftermath::Intact))?.digest;
        let publish_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(Outcome::Published { digest, publish_us })
    }

    async fn checkpoint(self: Arc<Self>, request: CheckpointRequest) -> Result<Outcome, Failure> {
        let (first, second, updates) = self.moments(request.version).await?;
        let weights = self.engine.with_backend(|engine| engine.export()).await.and_then(|done| done);
        let weights = weights.map_err(|e| engine_failure(&e, Aftermath::Intact))?;
        let state = TrainState {
            version: request.version,
            weights,
            optimizer: OptimizerState::new(first, second, updates),
            seed: self.training.seed,
            cursor_json: request.cursor_json,
        };
        let saved = blocking(move || {
            let keep = self.training.checkpoint.keep as usize;
            checkpoint::save(&self.run_dir, &self.model, &state, keep).map_err(|e| checkpoint_failure(&e))
        });
        let saved = saved.await?;
        Ok(Outcome::Saved { dir: saved.dir, manifest_sha256: saved.manifest_sha256 })
    }

    /// The optimizer's state, from all ranks that keep some of it.
    async fn moments(&self, version: PolicyVersion) -> Result<Moments, Failure> {
        match &self.team {
            Some(team) => self.again(|| async { team.moments(&self.engine, version).await.map_err(of_team) }).await,
            None => {
                let exported = self.engine.with_backend(|engine| engine.optimizer_export()).await.and_then(|done| done);
                exported.map_err(|e| engine_failure(&e, Aftermath::Intact))
            }
        }
    }

    /// Labels the engine's weights as a version; gives their digest and SHA-256.
    async fn name(&self, version: PolicyVersion) -> Result<(u64, String), Failure> {
        let lost = |e| engine_failure(&e, Aftermath::WeightsLost);
        let (weights, label) = self.engine.snapshot(version.0).await.map_err(lost)?;
        Ok((label.digest, blocking(move || Ok(weights.sha256())).await?))
    }
}

/// How a try of a step ended that did not succeed.
enum Attempt {
    /// A rank was lost or stuck. Where nothing of it is in the weights, it can be tried again.
    Abandoned(CollectiveError, Aftermath),
    /// A part of the optimizer's state is nowhere any more.
    PartLost(String),
    /// For good.
    Failed(Failure),
}

fn abandoned(error: StepError, aftermath: Aftermath) -> Attempt {
    match error {
        StepError::Ranks(why) if !why.is_fatal() => Attempt::Abandoned(why, aftermath),
        error => Attempt::Failed(step_failure(&error, aftermath)),
    }
}

fn of_team(error: TeamError) -> Attempt {
    match error {
        TeamError::Ranks(why) => abandoned(why.into(), Aftermath::Intact),
        TeamError::Engine(e) => Attempt::Failed(engine_failure(&e, Aftermath::Intact)),
        lost @ TeamError::PartLost { .. } => Attempt::PartLost(lost.to_string()),
    }
}

/// F3: one of the ranks computes something else.
fn diverged(request: &StepRequest, made: Holding, rank: &str, digest: u64) -> Failure {
    let error = format!(
        "step {} gave weights {:016x} here and {digest:016x} on {rank}: one of the machines computes wrongly, or their builds differ; \
         test its memory, or leave it out",
        request.intent.step, made.digest
    );
    Failure { error, fatal: true, fault: Fault::Compute, aftermath: Aftermath::WeightsLost }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|e| {
        Err(Failure { error: e.to_string(), fatal: true, fault: Fault::Worker, aftermath: Aftermath::WeightsLost })
    })
}

fn engine_failure(error: &EngineError, aftermath: Aftermath) -> Failure {
    let aftermath = if matches!(error, EngineError::Stopped(_)) { Aftermath::EngineLost } else { aftermath };
    let fatal = !matches!(error, EngineError::Capacity(_) | EngineError::Stopped(_));
    Failure { error: error.to_string(), fatal, fault: Fault::Compute, aftermath }
}

fn step_failure(error: &StepError, aftermath: Aftermath) -> Failure {
    Failure { error: error.to_string(), fatal: error.is_fatal(), fault: error.fault(), aftermath }
}

fn model_failure(error: &ModelError) -> Failure {
    Failure { error: error.to_string(), fatal: true, fault: Fault::Worker, aftermath: Aftermath::WeightsLost }
}

fn checkpoint_failure(error: &CheckpointError) -> Failure {
    // With room on the disk again, or from an older checkpoint, the run can go on; the coordinator decides for how long.
    let fatal = matches!(error, CheckpointError::Foreign { .. } | CheckpointError::Cursor(_));
    let fault = if error.is_out_of_space() { Fault::System } else { Fault::Worker };
    Failure { error: error.to_string(), fatal, fault, aftermath: Aftermath::Intact }
}
