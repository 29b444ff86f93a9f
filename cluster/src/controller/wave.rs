//! The groups that are worked on together: those of one training step, or the prompts of the evaluation rounds that are
//! due at one version. Leases exist only for groups of the current wave. An asynchronous run has one wave for everything.
use super::event::{ConnId, ScoresSummary, TrajectoriesSummary, Work};
use super::plan::EvaluationRound;
use cohort_protocol::{AttemptId, PolicyVersion, StepId};
use std::collections::BTreeMap;
use std::time::Instant;

/// What a wave is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaveKind {
    /// Groups of a step.
    Training(StepId),
    /// Evaluation rounds.
    Evaluation(Vec<EvaluationRound>),
    /// Groups of an asynchronous run, and the evaluation rounds under way beside them.
    Stream(Vec<EvaluationRound>),
}

/// Groups under way. Ordered: training groups by id.
#[derive(Debug, Clone, PartialEq)]
pub struct Wave {
    /// What for.
    pub kind: WaveKind,
    /// The groups.
    pub groups: BTreeMap<Work, Group>,
    /// The wave is complete and its conclusion is being recorded.
    pub closing: bool,
}

impl Wave {
    /// An empty one.
    #[must_use]
    pub fn new(kind: WaveKind) -> Self {
        Self { kind, groups: BTreeMap::new(), closing: false }
    }

    /// Whether every group has its scores.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.groups.is_empty() && self.groups.values().all(|g| matches!(g.scoring, Scoring::Done(_)))
    }
}

/// A group on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Training: place in the stream of data rows. Evaluation: held-out row.
    pub cursor: u64,
    /// Samples.
    pub samples: u16,
    /// Whether the ledger knows that it is in flight (training).
    pub opened: bool,
    /// Highest attempt at generating it.
    pub lease_attempt: AttemptId,
    /// Highest attempt at scoring it.
    pub score_attempt: AttemptId,
    /// Tries that failed with an answer.
    pub failures: u32,
    /// Workers that were lost while they had it.
    pub losses: u32,
    /// How far its trajectories are.
    pub generation: Generation,
    /// How far its scores are.
    pub scoring: Scoring,
}

impl Group {
    /// One that nobody has worked on.
    #[must_use]
    pub fn new(cursor: u64, samples: u16) -> Self {
        Self {
            cursor,
            samples,
            opened: false,
            lease_attempt: AttemptId(0),
            score_attempt: AttemptId(0),
            failures: 0,
            losses: 0,
            generation: Generation::Waiting { not_before: None },
            scoring: Scoring::Waiting { not_before: None },
        }
    }
}

/// From a lease to accepted trajectories.
#[derive(Debug, Clone, PartialEq)]
pub enum Generation {
    /// Needs a worker.
    Waiting {
        /// After a failure: not before this.
        not_before: Option<Instant>,
    },
    /// The lease is being recorded; it goes out when that is done.
    Recording {
        /// To whom.
        conn: ConnId,
    },
    /// A worker has it.
    Leased {
        /// Who.
        conn: ConnId,
        /// Until when.
        deadline: Instant,
        /// Version that its worker had: no token of it will be older.
        version: PolicyVersion,
    },
    /// Delivered, being recorded.
    Storing,
    /// Accepted.
    Done(TrajectoriesSummary),
}

/// From accepted trajectories to accepted scores.
#[derive(Debug, Clone, PartialEq)]
pub enum Scoring {
    /// Needs a worker, once generated.
    Waiting {
        /// After a failure: not before this.
        not_before: Option<Instant>,
    },
    /// A worker has it.
    Asked {
        /// Who.
        conn: ConnId,
        /// Until when.
        deadline: Instant,
    },
    /// Delivered, being recorded.
    Storing,
    /// Accepted.
    Done(ScoresSummary),
}
