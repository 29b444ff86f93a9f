//! Why a coordinator ended before its run did.
use crate::ledger::LedgerError;
use cohort_protocol::messages::learner::Fault;
use thiserror::Error;

/// All of them leave the run resumable.
#[derive(Debug, Error)]
pub enum CoordinatorError {
    /// The ledger refused.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The run would compute with other numerics than it was begun with.
    #[error(
        "run numerics differ: the run was begun with {begun:?}, this build and configuration have {now:?}; use the same build, kernel path and settings, or begin a new run"
    )]
    Numerics {
        /// In the ledger.
        begun: String,
        /// Of this process.
        now: String,
    },
    /// The run cannot go on.
    #[error("{error}")]
    RunFailed {
        /// Place, value and remedy.
        error: String,
        /// What is to blame.
        fault: Fault,
    },
    /// A thread of the coordinator could not be started or has died.
    #[error("the coordinator's {0} has stopped; its log says why")]
    Internal(&'static str),
}
