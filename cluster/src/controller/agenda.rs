//! Groups in the orders in which they are looked for, so that nobody walks over all of them: which is generated or scored
//! next, whose deadline has passed, which are complete, which grow too old.
//!
//! Invariant **E1**: an index says of every group what its [`Stage`] says, at every moment: `Wave::insert`, `change` and
//! `remove` are the only ways to another one. An update costs the logarithm of the number of groups, and so does every
//! question but for what it finds.
use super::event::Work;
use super::wave::{Generation, Group, Scoring};
use cohort_protocol::{GroupId, LeasePurpose, PolicyVersion};
use std::collections::BTreeSet;
use std::time::Instant;

/// Training groups come before it, prompts of evaluation from it on.
const FIRST_PROMPT: Work = Work { purpose: LeasePurpose::Eval { step: 0, greedy: false }, group: GroupId(0) };

/// What of a group decides where it stands in the indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stage {
    to_generate: bool,
    to_score: bool,
    rests_until: Option<Instant>,
    lease_ends: Option<Instant>,
    score_ends: Option<Instant>,
    scored: bool,
    oldest: Option<PolicyVersion>,
}

impl Stage {
    /// Of a group as it is now.
    pub(super) fn of(work: Work, group: &Group) -> Self {
        let mut stage = Self { oldest: group.oldest_token().filter(|_| work.is_training()), ..Self::default() };
        match (&group.generation, &group.scoring) {
            (Generation::Waiting { not_before }, _) => {
                (stage.to_generate, stage.rests_until) = (not_before.is_none(), *not_before);
            }
            (Generation::Leased { deadline, .. }, _) => stage.lease_ends = Some(*deadline),
            (Generation::Done(_), Scoring::Waiting { not_before }) => {
                (stage.to_score, stage.rests_until) = (not_before.is_none(), *not_before);
            }
            (Generation::Done(_), Scoring::Asked { deadline, .. }) => stage.score_ends = Some(*deadline),
            (Generation::Done(_), Scoring::Done(_)) => stage.scored = true,
            (Generation::Recording { .. } | Generation::Storing | Generation::Done(_), _) => {}
        }
        stage
    }
}

/// The indexes. Those of [`Work`] are in its order, training before evaluation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Agenda {
    to_generate: BTreeSet<Work>,
    to_score: BTreeSet<Work>,
    scored: BTreeSet<Work>,
    /// Those that wait after a failure, by when that is over.
    resting: BTreeSet<(Instant, Work)>,
    leased: BTreeSet<(Instant, Work)>,
    asked: BTreeSet<(Instant, Work)>,
    /// Training groups whose oldest token's version is known, by it.
    by_age: BTreeSet<(PolicyVersion, Work)>,
    /// Training groups, and those of them that are scored.
    training: usize,
    training_scored: usize,
}

impl Agenda {
    /// A group has come to another stage; `None`: it was not in the wave, or has left it.
    pub(super) fn update(&mut self, work: Work, before: Option<Stage>, after: Option<Stage>) {
        if before == after {
            return;
        }
        let (was, is) = (before.unwrap_or_default(), after.unwrap_or_default());
        toggle(&mut self.to_generate, work, was.to_generate, is.to_generate);
        toggle(&mut self.to_score, work, was.to_score, is.to_score);
        toggle(&mut self.scored, work, was.scored, is.scored);
        reorder(&mut self.resting, work, was.rests_until, is.rests_until);
        reorder(&mut self.leased, work, was.lease_ends, is.lease_ends);
        reorder(&mut self.asked, work, was.score_ends, is.score_ends);
        reorder(&mut self.by_age, work, was.oldest, is.oldest);
        if work.is_training() {
            self.training = self.training + usize::from(after.is_some()) - usize::from(before.is_some());
            self.training_scored = self.training_scored + usize::from(is.scored) - usize::from(was.scored);
        }
    }

    /// The first training group, or prompt of evaluation, that needs a rollout worker now.
    pub(super) fn to_generate(&self, training: bool) -> Option<Work> {
        if training {
            self.to_generate.first().filter(|work| work.is_training()).copied()
        } else {
            self.to_generate.range(FIRST_PROMPT..).next().copied()
        }
    }

    /// The first group that needs a reward worker now.
    pub(super) fn to_score(&self) -> Option<Work> {
        self.to_score.first().copied()
    }

    /// A group whose wait after a failure is over.
    pub(super) fn rested(&self, now: Instant) -> Option<Work> {
        self.resting.first().filter(|(until, _)| *until <= now).map(|(_, work)| *work)
    }

    /// Leased groups whose deadline has passed.
    pub(super) fn late_leases(&self, now: Instant) -> Vec<Work> {
        in_order(self.leased.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, work)| *work))
    }

    /// Groups whose scores were to be there by now.
    pub(super) fn late_scores(&self, now: Instant) -> Vec<Work> {
        in_order(self.asked.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, work)| *work))
    }

    /// Every leased group.
    pub(super) fn leased(&self) -> Vec<Work> {
        in_order(self.leased.iter().map(|(_, work)| *work))
    }

    /// Training groups with a token of a version before `floor`, and that version.
    pub(super) fn older_than(&self, floor: PolicyVersion) -> Vec<(Work, PolicyVersion)> {
        let older = self.by_age.iter().take_while(|(oldest, _)| *oldest < floor);
        let mut found: Vec<(Work, PolicyVersion)> = older.map(|(oldest, work)| (*work, *oldest)).collect();
        found.sort_unstable();
        found
    }

    /// Training groups that have their scores.
    pub(super) fn scored_training(&self) -> impl Iterator<Item = Work> {
        self.scored.range(..FIRST_PROMPT).copied()
    }

    /// How many training groups there are, and how many of them have their scores.
    pub(super) fn training(&self) -> (usize, usize) {
        (self.training, self.training_scored)
    }

    /// How many groups have their scores.
    pub(super) fn scored(&self) -> usize {
        self.scored.len()
    }
}

fn toggle(set: &mut BTreeSet<Work>, work: Work, was: bool, is: bool) {
    if is && !was {
        set.insert(work);
    } else if was && !is {
        set.remove(&work);
    }
}

fn reorder<K: Ord + Copy>(order: &mut BTreeSet<(K, Work)>, work: Work, was: Option<K>, is: Option<K>) {
    if was == is {
        return;
    }
    if let Some(key) = was {
        order.remove(&(key, work));
    }
    order.extend(is.map(|key| (key, work)));
}

fn in_order(found: impl Iterator<Item = Work>) -> Vec<Work> {
    let mut found: Vec<Work> = found.collect();
    found.sort_unstable();
    found
}
