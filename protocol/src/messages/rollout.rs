//! Between coordinator and rollout workers. Trajectory batches travel as bulk.
use super::wire_messages;
use crate::{AttemptId, Epoch, GroupId, GroupLease, LeasePurpose, PolicyVersion, TrajectoryBatch, TurnPart};
use bincode::{Decode, Encode};

/// The worker has these weights in its engine and wants leases for them.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Ready {
    /// Loaded policy; `None` until the first swap.
    pub version: Option<PolicyVersion>,
    /// Groups it takes at once.
    pub capacity: u16,
}

/// Proof of life with progress.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct RolloutBeat {
    /// Tokens sampled since the process started; a worker that holds leases and does not advance is hung.
    pub tokens: u64,
    /// Groups in work.
    pub running: u16,
}

/// A lease that the worker cannot fill (a prompt longer than the context, an environment that failed).
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct LeaseFailed {
    /// Epoch of the lease.
    pub epoch: Epoch,
    /// Purpose of the lease.
    pub purpose: LeasePurpose,
    /// Group.
    pub group: GroupId,
    /// Attempt.
    pub attempt: AttemptId,
    /// Place, value and remedy.
    pub error: String,
    /// Whether another worker or a later try could do it.
    pub retryable: bool,
}

/// A swap that came to nothing; the `Ready` that follows says which version is still there.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct SwapFailed {
    /// The version that was to be taken.
    pub version: PolicyVersion,
    /// Place, value and remedy.
    pub error: String,
}

/// What the policy has said in a group since the last of these.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct PartialGroup {
    /// Epoch of the lease.
    pub epoch: Epoch,
    /// Purpose of the lease.
    pub purpose: LeasePurpose,
    /// Group.
    pub group: GroupId,
    /// Attempt of the lease.
    pub attempt: AttemptId,
    /// In the order they follow each other, sample by sample.
    pub parts: Vec<TurnPart>,
}

wire_messages! {
    /// From a rollout worker.
    RolloutToCoordinator {
        /// After connecting and after each swap.
        1 => Ready(Ready),
        /// Bulk, acknowledged once journalled.
        2 => Trajectories(TrajectoryBatch),
        /// Instead of trajectories.
        3 => LeaseFailed(LeaseFailed),
        /// Each second.
        4 => Beat(RolloutBeat),
        /// Before `Ready`, where a swap failed.
        5 => SwapFailed(SwapFailed),
        /// Every two seconds where something was said, from version [`PARTIAL_GROUPS`](crate::version::PARTIAL_GROUPS) on.
        6 => Partial(PartialGroup),
    } removed []
}

/// New weights to swap to.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct WeightsReady {
    /// The policy.
    pub version: PolicyVersion,
    /// Slot of the host's weight ring that holds it.
    pub slot: u32,
    /// Digest that the loaded weights must have (as [`crate::StepCommit::weights_digest`]).
    pub digest: u64,
}

/// Which lease to stop.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct CancelLease {
    /// Purpose.
    pub purpose: LeasePurpose,
    /// Group.
    pub group: GroupId,
    /// Attempt.
    pub attempt: AttemptId,
}

/// A lease of a group that another worker had begun.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct ContinuedLease {
    /// The lease.
    pub lease: GroupLease,
    /// What the policy has said in it: whole turns and beginnings of turns, in order.
    pub parts: Vec<TurnPart>,
}

wire_messages! {
    /// To a rollout worker.
    CoordinatorToRollout {
        /// Swap, then say `Ready`.
        1 => Weights(WeightsReady),
        /// Generate this.
        2 => Lease(GroupLease),
        /// No longer wanted.
        3 => Cancel(CancelLease),
        /// Finish nothing more and leave; the reason is for the log.
        4 => Drain(String),
        /// As `Lease`, from version [`PARTIAL_GROUPS`](crate::version::PARTIAL_GROUPS) on.
        5 => Continue(ContinuedLease),
    } removed []
}
