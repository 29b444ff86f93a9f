//! What the ranks of a learner do together. [`Collective`] is the seam; [`Solo`] is one rank alone, [`Stream`] are ranks
//! connected with the lead by a [`Line`] each. Where their devices have a network of their own, sums travel on that ([`SharedFabric`]).
//!
//! Invariants
//! - **K1** every call ends: with the result, or with an error that names the rank that is lost, stuck or to blame. What a rank
//!   may take is counted from its last sign of progress.
//! - **K2** a sum over ranks is made in one tree ([`crate::shards`]), whatever arrives when.
//! - **K3** after an error the group is of no more use: every further call fails, on every rank.
mod fabric;
mod line;
mod memory;
mod passing;
mod solo;
mod stream;

pub use fabric::SharedFabric;
pub use line::{Line, Pulse};
pub use memory::Exchange;
pub use solo::Solo;
pub use stream::{Peer, Stream};

use cohort_protocol::messages::learner::Fault;
use cohort_protocol::messages::ranks::RankFailed;
use std::fmt;
use std::ops::Range;
use std::time::Duration;
use thiserror::Error;

/// A group of ranks that make the same calls in the same order. Calls block; none is made on a thread of an async runtime.
pub trait Collective: Send + fmt::Debug {
    /// This rank's place, from 0.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn world(&self) -> usize;
    /// Whether the group still stands, without waiting for anyone.
    fn check(&self) -> Result<(), CollectiveError>;
    /// Replaces `data`, equally long on every rank, by the sum of all ranks' in the tree.
    fn all_reduce(&mut self, data: &mut [f32]) -> Result<(), CollectiveError>;
    /// Replaces `data`, equally long on every rank, by that of rank 0.
    fn broadcast(&mut self, data: &mut [f32]) -> Result<(), CollectiveError>;
    /// Completes `data`, equally long on every rank, of which each has its own of the `parts`, equal on every rank: side by side
    /// they are all of it.
    fn all_gather(&mut self, data: &mut [f32], parts: &[Range<usize>]) -> Result<(), CollectiveError>;
    /// Gives rank 0 what every rank hands in, in their order; the others get nothing.
    fn gather(&mut self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, CollectiveError>;
    /// Returns when every rank has called it.
    fn barrier(&mut self) -> Result<(), CollectiveError>;
    /// Ends the group; every rank's next call fails with the reason.
    fn abort(&mut self, why: &str);
}

/// Why a collective call failed. The step is abandoned; nothing of it is in the weights.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CollectiveError {
    /// The connection to a rank is gone.
    #[error("{rank} was lost during {during}: {why}")]
    Lost {
        /// Whom.
        rank: String,
        /// In which call.
        during: &'static str,
        /// The connection's reason.
        why: String,
    },
    /// A rank is there and does not move.
    #[error("{rank} made no progress for {after:?} during {during}")]
    Stuck {
        /// Whom.
        rank: String,
        /// In which call.
        during: &'static str,
        /// Since its last sign of progress.
        after: Duration,
    },
    /// The network between the ranks' devices failed, and no rank is to blame.
    #[error("{fabric} failed during {during}: {why}")]
    Fabric {
        /// Its kind.
        fabric: &'static str,
        /// In which call.
        during: &'static str,
        /// What it says.
        why: String,
    },
    /// A rank says that it cannot do its part.
    #[error("{rank}: {}", failed.error)]
    Failed {
        /// Who.
        rank: String,
        /// What it says.
        failed: RankFailed,
    },
    /// A rank did something else than the others: another build, or a fault of this one.
    #[error("{rank} does not keep step during {during}: {why}; run the same build with the same configuration on every rank")]
    OutOfStep {
        /// Who.
        rank: String,
        /// In which call.
        during: &'static str,
        /// What came instead.
        why: String,
    },
}

impl CollectiveError {
    /// Whether the same step would fail again, with other ranks too.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Stuck { .. } | Self::Fabric { .. } => false,
            Self::Failed { failed, .. } => failed.fatal,
            Self::OutOfStep { .. } => true,
        }
    }

    /// What is to blame.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Failed { failed, .. } => failed.fault,
            _ => Fault::Worker,
        }
    }
}
