//! Rollout workers: agents talk in environments, every token as it was sampled.
//!
//! Invariants
//! - **R1** a trajectory is a pure function of (lease, weights): what else the worker does, how often the lease was given
//!   and to whom change no bit. Where a lease follows newer weights, also of the tokens at which they came, which its spans say.
//! - **R2** token ids are exactly those sampled; between turns only the chat template's text is tokenised, and masked out.
//! - **R3** a lease ends in exactly one of: a batch of all its samples, a failure, silence after a cancellation, a lost
//!   epoch or the process's end.
//!
//! Files: `episode` one sample; `scene` what an agent can do in it; `transcript` its columns; `format` chat template and
//! tokens; `constraint` the grammar of a turn; `tape` what was said so far, for another worker to go on from; `agents/` who speaks; `environments/` with whom; `tools/` what agents bring
//! along; `dataset` which prompt; `registry` from names to all of these; `state` the worker's decisions; `actor` carries them
//! out; `worker` the entry; `slow` a worker that waits, for tests.

pub mod actor;
pub mod agents;
pub mod config;
pub mod constraint;
pub mod dataset;
pub mod draw;
pub mod environments;
pub mod episode;
pub mod error;
pub mod format;
pub mod registry;
pub mod scene;
mod slow;
pub mod state;
pub mod tape;
pub mod tools;
pub mod transcript;
pub mod worker;

pub use agents::Agent;
pub use config::{AgentConfig, ConstraintConfig, EnvironmentConfig, OtherNumerics, RolloutConfig};
pub use constraint::Grammar;
pub use dataset::Dataset;
pub use environments::{Environment, Episode, Observation};
pub use episode::Stage;
pub use error::RolloutError;
pub use format::ChatFormat;
pub use scene::{Scene, Spoken};
pub use worker::{RolloutArgs, run_worker};
