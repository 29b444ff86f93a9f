//! No group is consumed twice, or consumed and dropped; every one that is consumed was accepted and scored once.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::ledger::Entry;
use cohort_protocol::{GroupId, StepId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Once {
    intents: BTreeMap<StepId, Vec<GroupId>>,
    committed: BTreeSet<StepId>,
    decided: BTreeMap<GroupId, StepId>,
    dropped: BTreeSet<GroupId>,
    accepted: BTreeSet<GroupId>,
    scored: BTreeSet<GroupId>,
}

impl Invariant for Once {
    fn name(&self) -> &'static str {
        "once"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        if let Seen::Began { past, .. } = seen {
            // What was whole in the segment counts as accepted.
            self.accepted.extend(past.open_groups.iter().filter(|(_, g)| g.trajectories.is_some()).map(|(id, _)| *id));
        }
        let Seen::Durable(entries) = seen else { return Ok(()) };
        for entry in entries {
            match entry {
                Entry::Trajectories(a) => {
                    holds(self.accepted.insert(a.group), || format!("trajectories of group {} twice", a.group))?;
                }
                Entry::Scores(a) => holds(self.scored.insert(a.group), || format!("scores of group {} twice", a.group))?,
                Entry::Intent(intent) => {
                    for group in &intent.groups {
                        let before = self.decided.insert(*group, intent.step);
                        holds(before.is_none(), || format!("group {group} is consumed by steps {before:?} and {}", intent.step))?;
                        let ready = self.accepted.contains(group) && self.scored.contains(group);
                        holds(ready, || format!("step {} consumes group {group}, which is not complete", intent.step))?;
                        holds(!self.dropped.contains(group), || format!("group {group} was dropped and is consumed"))?;
                    }
                    self.intents.insert(intent.step, intent.groups.clone());
                }
                Entry::Commit(commit) => {
                    let step = commit.step;
                    holds(self.intents.contains_key(&step), || format!("step {step} is committed without an intent"))?;
                    holds(self.committed.insert(step), || format!("step {step} is committed twice"))?;
                }
                Entry::Dropped { group, .. } => {
                    holds(self.dropped.insert(*group), || format!("group {group} is dropped twice"))?;
                    holds(!self.decided.contains_key(group), || format!("group {group} is consumed and dropped"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}
