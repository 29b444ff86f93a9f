//! What a ledger that several hosts keep is told, and what it answers: the commands of its replicated log.
use crate::{AttemptId, Epoch, GroupId, PolicyVersion, StepCommit, StepIntent, WorkerId};
use bincode::{Decode, Encode};

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum LedgerCommand {
    /// A coordinator begins.
    Open {
        /// Wall clock, milliseconds since the Unix epoch (a report).
        at_ms: u64,
    },
    /// Facts, in order, all or nothing.
    Record {
        /// Of the coordinator that says so; any but the newest is refused.
        epoch: Epoch,
        /// What.
        facts: Vec<LedgerFact>,
    },
    /// The run is over for this launch: keepers leave.
    Close {
        /// Of the coordinator that led; any but the newest is refused.
        epoch: Epoch,
        /// The exit code of the launch.
        code: u8,
        /// Why.
        reason: String,
    },
}

/// A fact as it travels and lies in the log.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum LedgerFact {
    /// A training group is leased for the first time.
    Opened {
        /// Group.
        group: GroupId,
        /// Place in the stream of data rows.
        cursor: u64,
        /// Coordinator incarnation.
        epoch: Epoch,
    },
    /// A training group is leased.
    Leased {
        /// Group.
        group: GroupId,
        /// Attempt.
        attempt: AttemptId,
        /// To whom.
        worker: WorkerId,
        /// Coordinator incarnation.
        epoch: Epoch,
        /// Wall clock, milliseconds since the Unix epoch (a report).
        at_ms: u64,
    },
    /// A group's trajectories are accepted.
    Trajectories(Delivered),
    /// A group's scores are accepted.
    Scores(Delivered),
    /// A step is about to be taken.
    Intent(StepIntent),
    /// A step was taken.
    Commit(StepCommit),
    /// A group is given up.
    Dropped {
        /// Group.
        group: GroupId,
        /// One of a few words that reports count by.
        reason: String,
        /// The cause in full.
        detail: String,
    },
    /// A checkpoint is complete.
    Checkpoint {
        /// Version it holds.
        version: PolicyVersion,
        /// Directory, relative to the run directory.
        dir: String,
        /// SHA-256 of its manifest.
        manifest_sha256: String,
        /// Wall clock, milliseconds since the Unix epoch (a report).
        at_ms: u64,
    },
    /// An evaluation round is complete: its report as JSON.
    Evaluation(String),
}

/// A delivery that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Delivered {
    /// By whom.
    pub worker: WorkerId,
    /// What an intent names it by.
    pub digest: String,
    /// Its bytes, as they go to the segment.
    pub payload: Vec<u8>,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum LedgerAnswer {
    /// Of an entry that is no command.
    Nothing,
    /// The coordinator's epoch.
    Opened(Epoch),
    /// On the disks of most keepers.
    Recorded,
    /// Keepers leave.
    Closed,
    /// Another coordinator has begun since: nothing was written.
    Overtaken {
        /// The newest epoch.
        now: Epoch,
    },
    /// Recorded already: nothing was written.
    Doubled {
        /// Table.
        table: String,
        /// Key.
        key: String,
    },
    /// Not a command of this build: nothing was written.
    Unreadable(String),
}
