//! Why a step was not taken.
use crate::collective::CollectiveError;
use cohort_engine::EngineError;
use cohort_protocol::messages::learner::Fault;
use thiserror::Error;

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
    /// Another rank is lost, stuck or could not do its part.
    #[error(transparent)]
    Ranks(#[from] CollectiveError),
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
        match self {
            Self::Ranks(error) => error.is_fatal(),
            Self::Engine { source: EngineError::Capacity(_), .. } => false,
            _ => true,
        }
    }

    /// What is to blame: the engine and values that are not finite are neither the request's fault nor the configuration's.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NonFinite { .. } | Self::Engine { .. } => Fault::Compute,
            Self::Ranks(error) => error.fault(),
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
    /// Inner epochs whose update was begun: above 0 the weights belong to no version and must be loaded again.
    pub updates: u32,
}

impl StepFailure {
    pub(super) fn untouched(error: StepError) -> Self {
        Self { error, updates: 0 }
    }
}

/// A call of the engine that failed.
pub(super) fn engine_error(during: &'static str) -> impl Fn(EngineError) -> StepError {
    move |source| match source {
        EngineError::NonFinite(why) => StepError::NonFinite { what: during, place: why, value: f64::NAN },
        source => StepError::Engine { during, source },
    }
}
