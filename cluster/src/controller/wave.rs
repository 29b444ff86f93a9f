//! The groups that are worked on together: those of one training step, or the prompts of the evaluation rounds that are
//! due at one version. Leases exist only for groups of the current wave. An asynchronous run has one wave for everything.
use super::agenda::{Agenda, Stage};
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
    /// The wave is complete and its conclusion is being recorded.
    pub closing: bool,
    groups: BTreeMap<Work, Group>,
    agenda: Agenda,
}

impl Wave {
    /// An empty one.
    #[must_use]
    pub fn new(kind: WaveKind) -> Self {
        Self { kind, closing: false, groups: BTreeMap::new(), agenda: Agenda::default() }
    }

    /// A group.
    #[must_use]
    pub fn get(&self, work: &Work) -> Option<&Group> {
        self.groups.get(work)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Work, &Group)> {
        self.groups.iter()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether every group has its scores.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.is_empty() && self.agenda.scored() == self.len()
    }

    /// Whether every prompt of evaluation has its scores.
    #[must_use]
    pub fn rounds_complete(&self) -> bool {
        let (training, scored) = self.agenda.training();
        self.agenda.scored() - scored == self.len() - training
    }

    /// Its groups in the orders in which they are looked for.
    pub(super) fn agenda(&self) -> &Agenda {
        &self.agenda
    }

    /// Puts a group in.
    pub(super) fn insert(&mut self, work: Work, group: Group) {
        let after = Stage::of(work, &group);
        let before = self.groups.insert(work, group).map(|group| Stage::of(work, &group));
        self.agenda.update(work, before, Some(after));
    }

    /// Takes a group out.
    pub(super) fn remove(&mut self, work: &Work) -> Option<Group> {
        let group = self.groups.remove(work)?;
        self.agenda.update(*work, Some(Stage::of(*work, &group)), None);
        Some(group)
    }

    /// Changes a group, if it is there.
    pub(super) fn change<R>(&mut self, work: &Work, change: impl FnOnce(&mut Group) -> R) -> Option<R> {
        let group = self.groups.get_mut(work)?;
        let before = Stage::of(*work, group);
        let result = change(group);
        let after = Stage::of(*work, group);
        self.agenda.update(*work, Some(before), Some(after));
        Some(result)
    }

    /// Groups whose wait after a failure is over wait for nothing but a worker.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some(work) = self.agenda.rested(now) {
            self.change(&work, |group| match (&mut group.generation, &mut group.scoring) {
                (Generation::Waiting { not_before }, _) | (_, Scoring::Waiting { not_before }) => *not_before = None,
                _ => {}
            });
        }
    }

    /// Takes the prompts of evaluation out; training groups stay.
    pub(super) fn remove_prompts(&mut self) -> Vec<Work> {
        let over: Vec<Work> = self.groups.keys().filter(|work| !work.is_training()).copied().collect();
        for work in &over {
            self.remove(work);
        }
        over
    }

    /// What the indexes must say, from a walk over all groups.
    #[cfg(test)]
    pub(super) fn assert_indexed(&self) {
        let mut plain = Agenda::default();
        self.groups.iter().for_each(|(work, group)| plain.update(*work, None, Some(Stage::of(*work, group))));
        assert_eq!(self.agenda, plain);
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

    /// Whose hands it is in.
    pub(super) fn holders(&self) -> impl Iterator<Item = ConnId> {
        let generates = match self.generation {
            Generation::Recording { conn } | Generation::Leased { conn, .. } => Some(conn),
            _ => None,
        };
        let scores = if let Scoring::Asked { conn, .. } = self.scoring { Some(conn) } else { None };
        generates.into_iter().chain(scores)
    }

    /// The version of its oldest token: as delivered, or as its lease was given. `None` while that is not known, or while
    /// something of it is on its way to the disk.
    pub(super) fn oldest_token(&self) -> Option<PolicyVersion> {
        match (&self.generation, &self.scoring) {
            (Generation::Leased { version, .. }, _) => Some(*version),
            (_, Scoring::Storing) => None,
            (Generation::Done(made), _) => made.versions.map(|(oldest, _)| oldest),
            _ => None,
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
