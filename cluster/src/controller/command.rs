//! What the controller orders, and how a run ends. Imperative, as events are past tense.
use super::event::{ConnId, DeliveryId, RecordId, Refused, Work};
use crate::progress::{EvaluationReport, RunPhase};
use cohort_protocol::messages::learner::{Fault, LoadFrom};
use cohort_protocol::{AttemptId, GroupId, PolicyVersion, StepCommit, StepId, StepIntent, WorkerId};
use std::time::Duration;

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
    /// Make facts durable, in order, all or nothing; then say [`Event::Recorded`](super::event::Event::Recorded).
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
