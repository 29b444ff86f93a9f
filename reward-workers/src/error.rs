//! Errors, grouped by what the caller does with them.
use cohort_actors::LinkError;
use thiserror::Error;

/// Why rewards could not be built or a worker had to stop.
#[derive(Debug, Error)]
pub enum RewardError {
    /// Bad config: fix the named place.
    #[error("{place}: {why}")]
    Config {
        /// Path in the config, as `rewards.parts[1]`.
        place: String,
        /// What is wrong there, with the remedy.
        why: String,
    },
    /// A request that cannot be read: drop it, it would not get better.
    #[error("{what} is not a JSON object: {why}")]
    Request {
        /// Which column.
        what: String,
        /// The parser's reason.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{what} {path}: {why}")]
    File {
        /// What was tried ("write", "read").
        what: &'static str,
        /// Which file.
        path: String,
        /// The system's reason and the remedy.
        why: String,
    },
    /// The session with the coordinator is over for good.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The worker's actor died.
    #[error("reward worker: {0}")]
    Actor(String),
}

impl RewardError {
    /// A config error at a place.
    pub(crate) fn config(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Config { place: place.into(), why: why.into() }
    }
}
