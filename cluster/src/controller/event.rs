//! What the controller hears. Events are past tense, [commands](super::command) imperative; payloads stay outside, named
//! by [`DeliveryId`] while they arrive and by [`Work`] once they are accepted.
use super::plan::Standing;
use cohort_protocol::messages::learner::Fault;
use cohort_protocol::{AttemptId, Epoch, GroupId, LeasePurpose, PolicyVersion, StepCommit, WorkerId};
use std::path::PathBuf;

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
