//! Nothing is acted upon before it is durable: a lease goes out after its row, a batch is acknowledged after its record, a
//! group is scored after its trajectories, a step is asked for after its intent, and counts after its commit.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::{Command, Work};
use cohort_cluster::ledger::Entry;
use cohort_protocol::{AttemptId, GroupId, StepId, StepIntent};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Durable {
    leases: BTreeSet<(GroupId, AttemptId)>,
    trajectories: BTreeSet<GroupId>,
    scores: BTreeSet<GroupId>,
    intents: BTreeMap<StepId, StepIntent>,
    commits: BTreeSet<StepId>,
}

impl Invariant for Durable {
    fn name(&self) -> &'static str {
        "durable"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Began { past, .. } => {
                let recorded = past.open_groups.iter().filter(|(_, g)| g.trajectories.is_some());
                self.trajectories.extend(recorded.map(|(id, _)| *id));
            }
            Seen::Durable(entries) => entries.iter().for_each(|entry| self.take(entry)),
            Seen::Kept { work, scores, .. } if work.is_training() => {
                let rows = if *scores { &self.scores } else { &self.trajectories };
                holds(rows.contains(&work.group), || format!("{work} is acknowledged before it is on the disk"))?;
            }
            Seen::Ordered(command) => self.ordered(command)?,
            _ => {}
        }
        Ok(())
    }
}

impl Durable {
    fn take(&mut self, entry: &Entry) {
        match entry {
            Entry::Leased { group, attempt, .. } => drop(self.leases.insert((*group, *attempt))),
            Entry::Trajectories(a) => drop(self.trajectories.insert(a.group)),
            Entry::Scores(a) => drop(self.scores.insert(a.group)),
            Entry::Intent(intent) => drop(self.intents.insert(intent.step, intent.clone())),
            Entry::Commit(commit) => drop(self.commits.insert(commit.step)),
            _ => {}
        }
    }

    fn ordered(&self, command: &Command) -> Result<(), String> {
        match command {
            Command::Lease { work, attempt, .. } if work.is_training() => {
                holds(self.leases.contains(&(work.group, *attempt)), || {
                    format!("attempt {attempt} at {work} goes out before it is on the disk")
                })
            }
            Command::Score { work: work @ Work { group, .. }, .. } if work.is_training() => {
                holds(self.trajectories.contains(group), || format!("{work} is scored before its trajectories are on the disk"))
            }
            Command::Step { intent, replay, .. } => {
                let step = intent.step;
                holds(self.intents.get(&step) == Some(intent), || format!("step {step} is asked for without its intent"))?;
                holds(self.commits.contains(&step) == *replay, || format!("step {step}: a replay is one of a committed step"))
            }
            Command::Committed(step) => {
                holds(self.commits.contains(step), || format!("step {step} is reported before its commit"))
            }
            _ => Ok(()),
        }
    }
}
