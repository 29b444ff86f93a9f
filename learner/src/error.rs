//! What goes wrong in the learner, by what the caller does about it.
pub use crate::aggregator::Refused;
pub use crate::checkpoint::CheckpointError;
pub use crate::config::ConfigError;
pub use crate::step::StepError;
use cohort_actors::LinkError;
use cohort_engine::EngineError;
use thiserror::Error;

/// The worker cannot go on: its process exits with this message.
#[derive(Debug, Error)]
pub enum LearnerError {
    /// A value of `[training]`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The loss needs a frozen reference and the process has none.
    #[error("training.loss.beta is above 0: the KL term needs a reference model, and this process was started without one")]
    NoReference,
    /// The engine is gone.
    #[error("engine: {0}")]
    Engine(#[from] EngineError),
    /// The coordinator does not want this worker, or cannot be found.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The actor could not be started, or ended without being asked to.
    #[error("learner actor: {0}")]
    Actor(String),
}
