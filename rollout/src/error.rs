//! What can go wrong in a rollout worker, grouped by what the caller does about it.
use cohort_actors::LinkError;
use cohort_engine::EngineError;
use cohort_model::ModelError;
use thiserror::Error;

/// See the variants.
#[derive(Debug, Error)]
pub enum RolloutError {
    /// The configuration asks for something that is not there. Stop: it would fail again.
    #[error("{place}: {problem}")]
    Config {
        /// Key of the configuration.
        place: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A data file cannot be used. Stop.
    #[error("{place}: {problem}")]
    Data {
        /// File, and line where one is to blame.
        place: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// One row of the data cannot be generated from. The group fails; another try would fail the same way.
    #[error("row {row}: {problem}")]
    Item {
        /// Row of the data set.
        row: u64,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Text and tokens do not go together (tokenizer, chat template).
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The coordinator refused or is gone.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// An environment or tool failed in a way that another try may not.
    #[error("environment {environment}: {problem}")]
    Environment {
        /// Which.
        environment: String,
        /// Its reason.
        problem: String,
    },
    /// A bug of this crate or of an agent: the episode contradicts itself.
    #[error("episode: {0}")]
    Episode(String),
    /// The worker's actor could not be started or died.
    #[error("rollout worker: {0}")]
    Actor(String),
}

impl RolloutError {
    /// Whether another worker or a later try could do the same lease.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Environment { .. } | Self::Link(_) | Self::Actor(_) => true,
            Self::Engine(error) => matches!(error, EngineError::Device(_) | EngineError::Stopped(_) | EngineError::Capacity(_)),
            Self::Config { .. } | Self::Data { .. } | Self::Item { .. } | Self::Model(_) | Self::Episode(_) => false,
        }
    }
}
