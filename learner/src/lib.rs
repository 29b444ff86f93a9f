//! From scored groups to new policy versions: aggregation, advantages, objectives, steps, checkpoints, publishing.
//!
//! Invariants
//! - **L1** a step is a pure function of the base weights, the optimizer's memory and the intent: the same bits whatever
//!   arrived when, and however often it is done again.
//! - **L2** before the first update of a step, every sampled token's log-prob is compared with the sampler's own.
//! - **L3** a failed request leaves weights, moments, ring and checkpoints as they were, or says that they are lost.
//! - **L4** groups, divisors and group statistics are those of the whole step, whatever the micro-batches.
//!
//! Files: `config` what a user writes, `training` what it means; `aggregator/` scored samples to complete groups;
//! `advantage/` rewards to advantages; `algo/` the objectives; `batching` groups to micro-batches; `schedule` learning
//! rates; `step` one step, the whole of it; `shards` how any number of ranks comes to the same sum, `collective/` what they do
//! together; `checkpoint/` directories on the disk; `publish` weights to the ring; `sinks/`
//! where metrics go; `state` what the worker decides, `patience` how long a job may stand still, `actor` and `jobs` how it
//! is done, `worker` its session with the coordinator; `ranks/` several learners as one;
//! `exact` exp and cos with one answer everywhere; `metrics` how values of one name come together.
pub mod actor;
pub mod advantage;
pub mod aggregator;
pub mod algo;
pub mod batching;
pub mod checkpoint;
pub mod collective;
pub mod config;
pub mod error;
pub mod exact;
pub mod jobs;
pub mod metrics;
pub mod patience;
pub mod publish;
pub mod ranks;
pub mod schedule;
pub mod shards;
pub mod sinks;
pub mod state;
pub mod step;
#[cfg(test)]
mod testing;
pub mod training;
pub mod worker;

pub use actor::LearnerActor;
pub use config::{ConfigError, TrainingConfig};
pub use error::LearnerError;
pub use ranks::{Ranks, Rendezvous};
pub use training::Training;
pub use worker::{LearnerArgs, run_worker};
