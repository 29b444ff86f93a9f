//! Between coordinator and learner ranks. Steps travel as bulk.
use super::wire_messages;
use crate::{Epoch, GroupPayload, PolicyVersion, StepCommit, StepId, StepIntent};
use bincode::{Decode, Encode};

/// Where the learner takes its state from.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum LoadFrom {
    /// The base model of the config, fresh optimizer.
    Base,
    /// A checkpoint directory, relative to the run directory, already verified by the coordinator.
    Checkpoint(String),
}

/// Load state; answer with `Loaded`.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Load {
    /// Coordinator incarnation.
    pub epoch: Epoch,
    /// Where from.
    pub from: LoadFrom,
    /// The version that state has.
    pub version: PolicyVersion,
}

/// Do one step: a pure function of the weights of `intent.base` and the groups.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct StepRequest {
    /// Coordinator incarnation.
    pub epoch: Epoch,
    /// What is consumed.
    pub intent: StepIntent,
    /// Its groups, in the intent's order.
    pub groups: Vec<GroupPayload>,
    /// Whether this replays a committed step after a loss (same bits expected, nothing exported twice).
    pub replay: bool,
    /// Whether to compute the SHA-256 of the weights for the commit.
    pub hash: bool,
}

/// Make the current weights visible to the rollout workers.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct PublishRequest {
    /// Coordinator incarnation.
    pub epoch: Epoch,
    /// Version to publish; must be the current one.
    pub version: PolicyVersion,
    /// Free slot of the host's weight ring.
    pub slot: u32,
}

/// Save a checkpoint of the current version to `checkpoints/step-N`.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct CheckpointRequest {
    /// Coordinator incarnation.
    pub epoch: Epoch,
    /// Version to save; must be the current one.
    pub version: PolicyVersion,
    /// Data cursor and counters of the coordinator, a JSON object stored as `cursor.json`.
    pub cursor_json: String,
}

wire_messages! {
    /// To a learner rank.
    CoordinatorToLearner {
        /// State to take.
        1 => Load(Load),
        /// Bulk.
        2 => Step(StepRequest),
        /// After a step.
        3 => Publish(PublishRequest),
        /// At the checkpoint interval.
        4 => Checkpoint(CheckpointRequest),
        /// Leave; the reason is for the log.
        5 => Drain(String),
        /// To a follower: where the lead waits for its followers.
        6 => Meet(String),
    } removed []
}

/// State is loaded.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Loaded {
    /// Coordinator incarnation of the request.
    pub epoch: Epoch,
    /// Version in the engine.
    pub version: PolicyVersion,
    /// Digest of the weights.
    pub digest: u64,
    /// SHA-256 of the weights.
    pub sha256: String,
}

/// A step is done.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Stepped {
    /// Coordinator incarnation of the request.
    pub epoch: Epoch,
    /// The outcome.
    pub commit: StepCommit,
}

/// Weights are in the slot.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Published {
    /// Coordinator incarnation of the request.
    pub epoch: Epoch,
    /// Version.
    pub version: PolicyVersion,
    /// Slot.
    pub slot: u32,
    /// Digest of what was written.
    pub digest: u64,
    /// Microseconds it took.
    pub publish_us: u64,
}

/// A checkpoint is on the disk, complete and renamed.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct CheckpointSaved {
    /// Coordinator incarnation of the request.
    pub epoch: Epoch,
    /// Version.
    pub version: PolicyVersion,
    /// Directory, relative to the run directory.
    pub dir: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
}

/// What is to blame for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Fault {
    /// The request, the data or the worker itself.
    Worker,
    /// The engine failed, or a value is not finite.
    Compute,
    /// The operating system refused: no space.
    System,
}

/// A request failed and the state is as before it.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct LearnerFailed {
    /// Coordinator incarnation of the request.
    pub epoch: Epoch,
    /// What was asked ("step 12", "publish 3").
    pub what: String,
    /// Place, value and remedy.
    pub error: String,
    /// `true`: the run must stop (non-finite loss, no disk space for the last checkpoint); `false`: asking again may help.
    pub fatal: bool,
    /// What is to blame; decides the exit code of a run that ends with it.
    pub fault: Fault,
}

/// Proof of life with progress.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct LearnerBeat {
    /// Version in the engine; `None` before the first load.
    pub version: Option<PolicyVersion>,
    /// The step in work, if any.
    pub step: Option<StepId>,
    /// Moves with every micro-batch, and with time while the job in work is within what it may take for a model of this
    /// size; a learner that has a request and whose counter stands still is hung.
    pub progress: u64,
}

wire_messages! {
    /// From a learner rank.
    LearnerToCoordinator {
        /// After connecting: the version it holds, `None` when fresh.
        1 => Ready(Option<PolicyVersion>),
        /// Answer to `Load`.
        2 => Loaded(Loaded),
        /// Answer to `Step`.
        3 => Stepped(Stepped),
        /// Answer to `Publish`.
        4 => Published(Published),
        /// Answer to `Checkpoint`.
        5 => CheckpointSaved(CheckpointSaved),
        /// Answer to any of them.
        6 => Failed(LearnerFailed),
        /// Each second.
        7 => Beat(LearnerBeat),
        /// From the lead: where it waits for its followers.
        8 => Meeting(String),
    } removed []
}
