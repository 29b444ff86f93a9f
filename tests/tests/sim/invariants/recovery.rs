//! What a start of the coordinator recovers is what was durable: every intent, commit and checkpoint, and every group in
//! flight with its attempt; and all of these groups are taken up again.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::ledger::{Entry, Past};
use cohort_protocol::{AttemptId, GroupId, StepCommit, StepId, StepIntent};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Recovery {
    intents: BTreeMap<StepId, StepIntent>,
    commits: BTreeMap<StepId, StepCommit>,
    checkpoints: usize,
    /// Attempt, and whether trajectories and scores are there.
    open: BTreeMap<GroupId, (AttemptId, bool, bool)>,
}

impl Invariant for Recovery {
    fn name(&self) -> &'static str {
        "recovery"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Began { past, .. } => self.compare(past),
            Seen::Durable(entries) => {
                entries.iter().for_each(|entry| self.take(entry));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Recovery {
    fn take(&mut self, entry: &Entry) {
        match entry {
            Entry::Opened { group, .. } => drop(self.open.insert(*group, Default::default())),
            Entry::Leased { group, attempt, .. } => self.open.entry(*group).or_default().0 = *attempt,
            Entry::Trajectories(a) => self.open.entry(a.group).or_default().1 = true,
            Entry::Scores(a) => self.open.entry(a.group).or_default().2 = true,
            Entry::Intent(intent) => drop(self.intents.insert(intent.step, intent.clone())),
            Entry::Commit(commit) => {
                for group in self.intents.get(&commit.step).map(|i| i.groups.clone()).unwrap_or_default() {
                    self.open.remove(&group);
                }
                self.commits.insert(commit.step, commit.clone());
            }
            Entry::Dropped { group, .. } => drop(self.open.remove(group)),
            Entry::Checkpoint { .. } => self.checkpoints += 1,
            Entry::Evaluation(_) => {}
        }
    }

    fn compare(&mut self, past: &Past) -> Result<(), String> {
        holds(past.intents == self.intents, || format!("intents {:?} are recovered of {:?}", past.intents, self.intents))?;
        holds(past.commits == self.commits, || format!("commits {:?} are recovered of {:?}", past.commits, self.commits))?;
        holds(past.checkpoints.len() == self.checkpoints, || {
            format!("{} checkpoints of {}", past.checkpoints.len(), self.checkpoints)
        })?;
        // Whole trajectories of a group in flight may have been found in a segment.
        for (id, group) in &past.open_groups {
            let known = self.open.entry(*id).or_default();
            known.1 |= group.trajectories.is_some();
        }
        let found = |id: &GroupId| past.open_groups.get(id).map(|g| (g.attempt, g.trajectories.is_some(), g.scores.is_some()));
        for (id, known) in &self.open {
            holds(found(id) == Some(*known), || format!("group {id} is recovered as {:?}, durable is {known:?}", found(id)))?;
        }
        Ok(())
    }
}
