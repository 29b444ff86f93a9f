//! From a configuration to the things that do the work: model files, engines, agents, environments, rewards, worker
//! arguments. Both kinds of run, in-process and processes, are wired here, so that they cannot differ.
use crate::config::Config;
use crate::preflight::{Need, available_memory};
use cohort_actors::confine::Confiner;
use cohort_actors::parent;
use cohort_engine::candle::CandleEngine;
use cohort_engine::native::NativeEngine;
use cohort_engine::stub::StubBackend;
use cohort_engine::{Backend, EngineError, EngineHandle, EngineOptions, WeightRing, fabric};
use cohort_learner::config::ConfigError;
use cohort_learner::{LearnerArgs, Ranks, Rendezvous};
use cohort_model::config::EngineKind;
use cohort_model::{Lora, ModelConfig, ModelError, ModelFiles, Quantization};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::version::{PROTOCOL, PROTOCOL_MIN};
use cohort_protocol::{Role, RunId, WorkerId};
use cohort_reward_workers::{Registry, Reward, RewardArgs, RewardError};
use cohort_rollout::dataset::Dataset;
use cohort_rollout::{RolloutArgs, RolloutError, registry};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// A part of the configuration that cannot be made to work.
#[derive(Debug, Error)]
pub enum WiringError {
    /// The model.
    #[error("model.path: {0}")]
    Model(#[from] ModelError),
    /// The engine.
    #[error("the engine cannot start: {0}")]
    Engine(#[from] EngineError),
    /// Agent, environment or data.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// Rewards.
    #[error(transparent)]
    Reward(#[from] RewardError),
    /// Training.
    #[error("training.{0}")]
    Training(#[from] ConfigError),
    /// The process's own environment.
    #[error(transparent)]
    Parent(#[from] parent::ParentError),
}

/// A run's configuration with its model opened: everything workers are made from.
#[derive(Debug, Clone)]
pub struct Wiring {
    /// The resolved configuration.
    pub config: Arc<Config>,
    /// The model's files, headers checked.
    pub files: ModelFiles,
    /// The run.
    pub run: RunId,
    /// Its directory.
    pub run_dir: PathBuf,
    /// With adapters: their settings and the frozen weights' digest, for the numerics.
    frozen: Option<String>,
}

impl Wiring {
    /// Opens the model. Nothing is computed or written yet.
    pub fn open(config: Arc<Config>, run: RunId, run_dir: &Path) -> Result<Self, WiringError> {
        let files = ModelFiles::open(&config.model.path)?;
        let files = match &config.model.lora {
            Some(lora) => files.adapted(lora)?,
            None => files,
        };
        // Adapters alone travel: that all compute beside the same frozen weights is part of the run's identity.
        let frozen = files.lora().map(|lora| Ok::<_, ModelError>(adapted(lora, files.weights()?.digest()))).transpose()?;
        Ok(Self { config, files, run, run_dir: run_dir.to_owned(), frozen })
    }

    /// What decides bits, one line: equal bits are promised for equal lines only.
    #[must_use]
    pub fn numerics(&self) -> String {
        let config = &self.config;
        let (engine, dtype, device) = (config.model.engine, config.model.dtype, config.model.device);
        let training = cohort_learner::training::Training::try_from(&config.training).map(|t| t.numerics()).unwrap_or_default();
        let stub = if self.is_stub() { " stub" } else { "" };
        let frozen = self.frozen.as_deref().unwrap_or_default();
        let rollout = match config.rollout.quantization {
            Quantization::None => "",
            Quantization::Int8 => " rollout=int8",
        };
        format!("engine={engine:?} dtype={dtype:?} device={device:?}{stub}{frozen}{rollout} {training}").to_lowercase()
    }

    /// Scripted answers instead of a model.
    #[must_use]
    pub fn is_stub(&self) -> bool {
        self.config.model.path.starts_with("stub://")
    }

    /// Makes what can be made without computing: data set, agent, environment, rewards, training, free memory apart.
    pub fn check(&self) -> Result<(), WiringError> {
        cohort_learner::training::Training::try_from(&self.config.training)?;
        if self.config.training.recompute_activations && self.config.model.engine != EngineKind::Native {
            return Err(WiringError::Training(ConfigError {
                path: "recompute_activations".into(),
                value: "true".into(),
                rule: "needs model.engine = \"native\"; candle keeps what its own backward pass wants".into(),
            }));
        }
        self.dataset()?;
        registry::agent(&self.config.agent, &self.files)?;
        registry::environment(&self.config.environment)?;
        self.rewards()?;
        Ok(())
    }

    /// A worker's introduction.
    pub fn hello(&self, worker: WorkerId) -> Result<Hello, WiringError> {
        Ok(Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            run: self.run,
            worker,
            pid: std::process::id(),
            incarnation: parent::incarnation()?,
            numerics: self.numerics(),
        })
    }

    /// An engine without weights that can do all: the learner loads them, and rollout workers of its process swap to what it
    /// publishes.
    pub fn engine(&self) -> Result<EngineHandle, WiringError> {
        self.start(self.backend(Use::All)?)
    }

    /// An engine without weights that never samples for training: the learner's where rollout workers have their own.
    pub fn learning_engine(&self) -> Result<EngineHandle, WiringError> {
        self.start(self.backend(Use::Learning)?)
    }

    /// An engine without weights for a process that does not learn.
    pub fn sampling_engine(&self) -> Result<EngineHandle, WiringError> {
        self.start(self.backend(Use::Sampling)?)
    }

    fn start<M>(&self, backend: M) -> Result<EngineHandle, WiringError>
    where
        M: FnOnce() -> Result<Box<dyn Backend>, EngineError> + Send + 'static,
    {
        let capacity = usize::from(self.config.cluster.capacity.get());
        let running = (capacity * usize::from(self.config.training.group_size)).clamp(16, 512);
        let options = EngineOptions {
            max_running: running,
            max_jobs: running.max(1024),
            keep_stale_kv: self.config.training.keep_stale_kv,
            ..EngineOptions::default()
        };
        Ok(EngineHandle::start(backend, options)?)
    }

    /// A frozen engine with the base weights, where the loss has a KL term.
    pub fn reference(&self) -> Result<Option<EngineHandle>, WiringError> {
        if !cohort_learner::training::Training::try_from(&self.config.training)?.loss.needs_reference() {
            return Ok(None);
        }
        let (backend, weights) = (self.backend(Use::Reference)?, self.files.weights()?);
        let make = move || {
            let mut backend = backend()?;
            backend.import(&weights)?;
            Ok(backend)
        };
        Ok(Some(EngineHandle::start(make, EngineOptions::default())?))
    }

    /// The data set; also checks that there is one.
    pub fn dataset(&self) -> Result<Arc<dyn Dataset>, WiringError> {
        Ok(registry::dataset(&self.config.environment, Path::new("."), self.config.training.seed)?)
    }

    /// A rollout worker.
    pub fn rollout(&self, index: u16, engine: EngineHandle, ring: Arc<dyn WeightRing>) -> Result<RolloutArgs, WiringError> {
        Ok(RolloutArgs {
            hello: self.hello(WorkerId { role: Role::Rollout, index })?,
            engine,
            ring,
            agent: registry::agent(&self.config.agent, &self.files)?,
            environment: registry::environment(&self.config.environment)?,
            capacity: self.config.cluster.capacity.get(),
        })
    }

    /// The graders; programs of users do not see the run's directory.
    pub fn rewards(&self) -> Result<Arc<dyn Reward>, WiringError> {
        let confiner = Confiner::default().hiding(&self.run_dir);
        Ok(Registry::confining(&confiner).build(&self.config.rewards)?)
    }

    /// A reward worker.
    pub fn reward(&self, index: u16) -> Result<RewardArgs, WiringError> {
        Ok(RewardArgs {
            hello: self.hello(WorkerId { role: Role::Reward, index })?,
            reward: self.rewards()?,
            capacity: self.config.cluster.capacity.get(),
        })
    }

    /// A learner rank, 0 the lead.
    pub fn learner(
        &self,
        index: u16,
        engine: EngineHandle,
        ring: Arc<dyn WeightRing>,
        rendezvous: Arc<dyn Rendezvous>,
    ) -> Result<LearnerArgs, WiringError> {
        let count = self.config.cluster.learner.get();
        let fabrics = fabric::between(self.config.model.device);
        Ok(LearnerArgs {
            hello: self.hello(WorkerId { role: Role::Learner, index })?,
            engine,
            reference: self.reference()?,
            ring,
            training: self.config.training.clone(),
            model: self.files.clone(),
            run_dir: self.run_dir.clone(),
            ranks: (count > 1).then_some(Ranks { count, rendezvous, fabrics }),
        })
    }

    /// How a backend is made on its thread.
    fn backend(
        &self,
        purpose: Use,
    ) -> Result<impl FnOnce() -> Result<Box<dyn Backend>, EngineError> + Send + 'static, WiringError> {
        let spec = self.files.spec.clone();
        let threads = usize::from(self.config.cluster.threads);
        let kv_bytes = kv_budget(Need::kv_of_engine(&spec, &self.config));
        let ModelConfig { engine: kind, device, dtype, .. } = self.config.model;
        let recompute = self.config.training.recompute_activations;
        let recorded =
            if purpose == Use::All { usize::try_from(Need::recording_budget(&self.config)).unwrap_or(usize::MAX) } else { 0 };
        let quantization = match purpose {
            Use::All | Use::Sampling => self.config.rollout.quantization,
            Use::Learning | Use::Reference => Quantization::None,
        };
        let stub = match self.is_stub() {
            true => Some((registry::stub_script(&self.config.agent, &self.files)?, self.files.weights()?)),
            false => None,
        };
        let adapters = match self.files.lora().filter(|_| purpose != Use::Reference) {
            Some(lora) => Some((lora.clone(), self.files.weights()?)),
            None => None,
        };
        Ok(move || -> Result<Box<dyn Backend>, EngineError> {
            Ok(match (stub, kind, device) {
                (Some((script, weights)), _, _) => Box::new(StubBackend::new(spec, script, weights)?),
                (None, EngineKind::Native, _) => {
                    let engine = NativeEngine::new(spec, threads, kv_bytes)?.of(dtype).sampling(quantization);
                    let engine = engine.recomputing(recompute).recording(recorded);
                    Box::new(match (adapters, purpose) {
                        (Some((lora, frozen)), _) => engine.adapted(&lora, &frozen)?,
                        (None, Use::All | Use::Learning) => engine,
                        (None, Use::Sampling | Use::Reference) => engine.for_sampling(),
                    })
                }
                (None, EngineKind::Candle, device) => Box::new(CandleEngine::new(spec, device, kv_bytes)?),
            })
        })
    }
}

/// Adapters and what they stand beside, for the numerics.
fn adapted(lora: &Lora, frozen: u64) -> String {
    let modules: Vec<&str> = lora.targets.iter().map(|target| target.name()).collect();
    let Lora { rank, alpha, dropout, .. } = lora;
    format!(" lora={rank}/{alpha}/{dropout}/{} frozen={frozen:016x}", modules.join("+"))
}

/// What an engine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Sampling and learning.
    All,
    /// Learning where others sample.
    Learning,
    /// Sampling and scoring.
    Sampling,
    /// Scoring with the frozen model.
    Reference,
}

/// Bytes for keys and values: what the run's sequences can fill, at most half of the free memory.
fn kv_budget(kv: u64) -> usize {
    let bytes = available_memory().map_or(kv, |free| kv.min(free / 2)).max(64 << 20);
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
