//! What the controller hears and what it orders. Events are past tense, commands imperative; payloads stay outside, named
//! by [`DeliveryId`] while they arrive and by [`Work`] once they are accepted.
use super::plan::Standing;
use crate::progress::{EvaluationReport, RunPhase};
use cohort_protocol::messages::learner::{Fault, LoadFrom};
use cohort_protocol::{AttemptId, Epoch, GroupId, LeasePurpose, PolicyVersion, StepCommit, StepId, StepIntent, WorkerId};
use std::path::PathBuf;
use std::time::Duration;

/// A connection of a worker; a worker that connects again gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// A bulk frame that has arrived and waits for its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId(pub u64);

/// A batch of facts on its way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId(pub u64);

/// A group to generate and score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Work {
    /// Training or evaluation.
    pub purpose: LeasePurpose,
    /// Group.
    pub group: GroupId,
}

impl Work {
    /// A training group.
    #[must_use]
    pub fn train(group: GroupId) -> Self {
        Self { purpose: LeasePurpose::Train, group }
    }

    /// Whether the ledger accounts for it.
    #[must_use]
    pub fn is_training(&self) -> bool {
        self.purpose == LeasePurpose::Train
    }
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.purpose {
            LeasePurpose::Train => write!(f, "group {}", self.group),
            LeasePurpose::Eval { step, greedy } => {
                write!(f, "{} evaluation prompt {} at step {step}", if greedy { "greedy" } else { "sampled" }, self.group)
            }
        }
    }
}

/// What the controller must know about a delivered batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrajectoriesSummary {
    /// Digest of the contents.
    pub digest: String,
    /// Samples in it.
    pub samples: u16,
    /// Oldest and newest policy version of a sampled token; `None` where nothing was sampled.
    pub versions: Option<(PolicyVersion, PolicyVersion)>,
}

/// What the controller must know about delivered scores.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoresSummary {
    /// Digest of the group's payload, which the scores complete: what an intent names.
    pub digest: String,
    /// Score of each sample, in order; empty where one failed.
    pub scores: Vec<f64>,
    /// Mean over the samples of every named part.
    pub parts: Vec<(String, f64)>,
    /// The first failure, and whether trying again may help.
    pub failure: Option<(String, bool)>,
}

/// What a full disk keeps from being written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// Facts, into this file.
    Ledger(PathBuf),
    /// A checkpoint.
    Checkpoint,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker was welcomed.
    Connected {
        /// Its connection.
        conn: ConnId,
        /// Who.
        worker: WorkerId,
        /// Which start of it.
        incarnation: u32,
        /// Its process.
        pid: u32,
    },
    /// Workers that an earlier coordinator of this launch had, with their processes.
    Known(Vec<(WorkerId, u32)>),
    /// A connection ended.
    Disconnected {
        /// Which.
        conn: ConnId,
        /// Why.
        why: String,
    },
    /// A worker is alive.
    Beat {
        /// Whose connection.
        conn: ConnId,
        /// Work done since its process started.
        progress: u64,
    },
    /// A rollout worker takes leases for this version.
    RolloutReady {
        /// Its connection.
        conn: ConnId,
        /// Version it has loaded.
        version: Option<PolicyVersion>,
        /// Groups it takes at once.
        capacity: u16,
    },
    /// A rollout worker could not take weights and keeps what it had.
    SwapFailed {
        /// Its connection.
        conn: ConnId,
        /// Version it was told to take.
        version: PolicyVersion,
        /// Why.
        error: String,
    },
    /// A group was generated; `Err`: what was delivered contradicts itself.
    Trajectories {
        /// Whose connection.
        conn: ConnId,
        /// The frame.
        delivery: DeliveryId,
        /// Epoch of the lease.
        epoch: Epoch,
        /// What was leased.
        work: Work,
        /// Attempt.
        attempt: AttemptId,
        /// What it holds.
        result: Result<TrajectoriesSummary, String>,
    },
    /// A lease cannot be filled.
    LeaseFailed {
        /// Whose connection.
        conn: ConnId,
        /// Epoch of the lease.
        epoch: Epoch,
        /// What was leased.
        work: Work,
        /// Attempt.
        attempt: AttemptId,
        /// Why.
        error: String,
        /// Whether trying again may help.
        retryable: bool,
    },
    /// A reward worker takes requests.
    RewardReady {
        /// Its connection.
        conn: ConnId,
        /// Groups it takes at once.
        capacity: u16,
    },
    /// A group was scored.
    Scores {
        /// Whose connection.
        conn: ConnId,
        /// The frame.
        delivery: DeliveryId,
        /// Epoch of the request.
        epoch: Epoch,
        /// What was scored.
        work: Work,
        /// Attempt.
        attempt: AttemptId,
        /// What it holds.
        summary: ScoresSummary,
    },
    /// A learner connected.
    LearnerReady {
        /// Its connection.
        conn: ConnId,
        /// Version in its engine; `None`: fresh, or not to be relied upon.
        version: Option<PolicyVersion>,
    },
    /// The lead of the learner's ranks says where its followers find it.
    Meeting {
        /// Its connection.
        conn: ConnId,
        /// The place.
        place: String,
    },
    /// The learner loaded a state.
    Loaded {
        /// Its connection.
        conn: ConnId,
        /// Epoch of the request.
        epoch: Epoch,
        /// Version.
        version: PolicyVersion,
        /// Digest of the weights.
        digest: u64,
    },
    /// A checkpoint that was to be loaded is not what was saved; the learner was not asked.
    CheckpointDamaged {
        /// The learner's connection.
        conn: ConnId,
        /// Version.
        version: PolicyVersion,
        /// How.
        why: String,
    },
    /// The learner took a step.
    Stepped {
        /// Its connection.
        conn: ConnId,
        /// Epoch of the request.
        epoch: Epoch,
        /// Outcome.
        commit: StepCommit,
    },
    /// The learner published.
    Published {
        /// Its connection.
        conn: ConnId,
        /// Epoch of the request.
        epoch: Epoch,
        /// Version.
        version: PolicyVersion,
        /// Slot.
        slot: u32,
        /// Digest of what was written.
        digest: u64,
    },
    /// The learner saved a checkpoint.
    CheckpointSaved {
        /// Its connection.
        conn: ConnId,
        /// Epoch of the request.
        epoch: Epoch,
        /// Version.
        version: PolicyVersion,
        /// Directory, relative to the run directory.
        dir: String,
        /// SHA-256 of its manifest.
        manifest_sha256: String,
    },
    /// A request to the learner failed and changed nothing.
    LearnerFailed {
        /// Its connection.
        conn: ConnId,
        /// Epoch of the request.
        epoch: Epoch,
        /// Which request.
        what: String,
        /// Why.
        error: String,
        /// Whether the run must stop.
        fatal: bool,
        /// What is to blame.
        fault: Fault,
    },
    /// Facts are durable.
    Recorded(RecordId),
    /// Facts found no room on the disk; whoever writes them tries again.
    NoRoom {
        /// What could not grow.
        what: Refused,
        /// Why, with the remedy.
        error: String,
    },
    /// Something outside the run's actors failed for good: the disk, the configuration.
    Failed {
        /// Why.
        error: String,
    },
    /// The agent says what stands.
    Standing(Standing),
    /// Someone asked the run to stop in order.
    DrainRequested {
        /// Who or why.
        reason: String,
    },
    /// Time has passed.
    Tick,
}

/// A fact to make durable.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// A training group is generated from here on.
    Opened {
        /// Group.
        group: GroupId,
        /// Place in the stream of data rows.
        cursor: u64,
    },
    /// A training group is leased.
    Leased {
        /// Group.
        group: GroupId,
        /// Attempt.
        attempt: AttemptId,
        /// To whom.
        worker: WorkerId,
    },
    /// A delivered batch is accepted.
    Trajectories {
        /// Group.
        group: GroupId,
        /// The frame.
        delivery: DeliveryId,
    },
    /// Delivered scores are accepted.
    Scores {
        /// Group.
        group: GroupId,
        /// The frame.
        delivery: DeliveryId,
    },
    /// A step is about to be taken.
    Intent(StepIntent),
    /// A step was taken.
    Commit(StepCommit),
    /// A group is given up.
    Dropped {
        /// Group.
        group: GroupId,
        /// One of a few words.
        reason: &'static str,
        /// The cause in full.
        detail: String,
    },
    /// A checkpoint is complete.
    Checkpoint {
        /// Version.
        version: PolicyVersion,
        /// Directory, relative to the run directory.
        dir: String,
        /// SHA-256 of its manifest.
        manifest_sha256: String,
    },
    /// An evaluation round is complete.
    Evaluation(EvaluationReport),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Make facts durable, in order, all or nothing; then say [`Event::Recorded`].
    Record {
        /// Name of the batch.
        id: RecordId,
        /// The facts.
        facts: Vec<Fact>,
    },
    /// Ask a rollout worker for a group.
    Lease {
        /// Whose connection.
        conn: ConnId,
        /// What.
        work: Work,
        /// Attempt.
        attempt: AttemptId,
        /// Policy.
        version: PolicyVersion,
        /// Training: place in the stream of data rows. Evaluation: held-out row.
        cursor: u64,
        /// Samples.
        samples: u16,
    },
    /// A lease is no longer wanted.
    CancelLease {
        /// Whose connection.
        conn: ConnId,
        /// What.
        work: Work,
        /// Attempt.
        attempt: AttemptId,
    },
    /// Tell a rollout worker to take new weights.
    Weights {
        /// Whose connection.
        conn: ConnId,
        /// Policy.
        version: PolicyVersion,
        /// Slot of the ring.
        slot: u32,
        /// Digest it must find.
        digest: u64,
    },
    /// Ask a reward worker to score a group whose trajectories are kept.
    Score {
        /// Whose connection.
        conn: ConnId,
        /// What.
        work: Work,
        /// Attempt.
        attempt: AttemptId,
        /// As in [`Command::Lease`].
        cursor: u64,
    },
    /// Acknowledge a delivery and keep its contents for `work`.
    Keep {
        /// The frame.
        delivery: DeliveryId,
        /// What for.
        work: Work,
    },
    /// Acknowledge a delivery and forget it: late, doubled, of another epoch, or wrong.
    Discard {
        /// The frame.
        delivery: DeliveryId,
        /// Why.
        why: String,
    },
    /// Contents kept for these are no longer needed.
    Forget(Vec<Work>),
    /// Tell the learner to load a state.
    Load {
        /// Its connection.
        conn: ConnId,
        /// Where from.
        from: LoadFrom,
        /// Version of it.
        version: PolicyVersion,
    },
    /// Ask the learner for a step.
    Step {
        /// Its connection.
        conn: ConnId,
        /// What it consumes.
        intent: StepIntent,
        /// Whether it is committed already.
        replay: bool,
        /// Whether the SHA-256 of the weights is wanted.
        hash: bool,
    },
    /// Ask the learner to publish.
    Publish {
        /// Its connection.
        conn: ConnId,
        /// Version.
        version: PolicyVersion,
        /// Slot of the ring.
        slot: u32,
    },
    /// Ask the learner for a checkpoint.
    Checkpoint {
        /// Its connection.
        conn: ConnId,
        /// Version.
        version: PolicyVersion,
        /// First group that no step up to that version has consumed.
        cursor: u64,
    },
    /// Tell a follower of the learner where the lead is.
    Meet {
        /// The follower's connection.
        conn: ConnId,
        /// The place.
        place: String,
    },
    /// A worker is hung: end its connection, where it has one, and have its process replaced.
    Replace {
        /// Who.
        worker: WorkerId,
        /// Its process; a successor of it is left alone.
        pid: u32,
        /// Its connection, the last one where it has none.
        conn: ConnId,
        /// Why.
        why: String,
    },
    /// The run is busy with something else now.
    Phase(RunPhase),
    /// A step is committed: report it.
    Committed(StepId),
    /// An evaluation round is recorded: report it.
    Evaluated(EvaluationReport),
    /// A disk is full: say so.
    NoRoom {
        /// What waits for room.
        what: Refused,
        /// How long it is waited for.
        patience: Duration,
    },
    /// It has room again: say so.
    RoomAgain {
        /// What waited.
        what: Refused,
        /// How long.
        waited: Duration,
    },
    /// Worth a line to people.
    Notice(String),
    /// The run is over; nothing follows.
    Finish(Outcome),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are committed, evaluated and saved.
    Finished,
    /// It left in order before its last step.
    Drained,
    /// It cannot go on.
    Failed {
        /// The first cause, with the remedy.
        error: String,
        /// What is to blame.
        fault: Fault,
    },
}
