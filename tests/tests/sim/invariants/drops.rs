//! A group is given up only with a reason, never in a synchronous run; one that was too stale has its prompt begun again in
//! the same transaction, and that group is really generated.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::stream::STALE;
use cohort_cluster::controller::{Command, Work};
use cohort_cluster::ledger::Entry;
use cohort_protocol::GroupId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A prompt that is begun again is leased within this, while a coordinator runs and nothing is in its way.
const PATIENCE: Duration = Duration::from_secs(100);

#[derive(Debug, Default)]
pub(super) struct Drops {
    rows: BTreeMap<GroupId, u64>,
    /// Groups of intents.
    decided: BTreeSet<GroupId>,
    /// Groups that are begun again and were not leased yet, since when.
    again: BTreeMap<GroupId, Duration>,
}

impl Invariant for Drops {
    fn name(&self) -> &'static str {
        "drops"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Ordered(Command::Lease { work, .. }) => drop(self.again.remove(&work.group)),
            Seen::Ordered(Command::Forget(works)) => self.forgotten(world, works)?,
            Seen::Durable(entries) => {
                for (at, entry) in entries.iter().enumerate() {
                    match entry {
                        Entry::Opened { group, cursor, .. } => drop(self.rows.insert(*group, *cursor)),
                        Entry::Intent(intent) => self.decided.extend(&intent.groups),
                        Entry::Dropped { group, reason, .. } => {
                            holds(world.setting.plan.is_asynchronous(), || {
                                format!("group {group} is dropped ({reason}) in a synchronous run")
                            })?;
                            if *reason == STALE {
                                let row = self.rows.get(group).copied();
                                let next = match entries.get(at + 1) {
                                    Some(Entry::Opened { group, cursor, .. }) if Some(*cursor) == row => Some(*group),
                                    _ => None,
                                };
                                holds(next.is_some(), || {
                                    format!("the prompt of group {group} is not begun again with its drop")
                                })?;
                                self.again.extend(next.map(|group| (group, world.now)));
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        let Some(healed) = world.healed_at else { return Ok(()) };
        match self.again.iter().find(|(_, since)| world.now > healed.max(**since) + PATIENCE) {
            Some((group, since)) => Err(format!("group {group}, begun again at {since:?}, has not been leased")),
            None => Ok(()),
        }
    }
}

impl Drops {
    /// What the controller forgets is of a step, or about to be dropped with a row, or one of an evaluation.
    fn forgotten(&self, world: &World, works: &[Work]) -> Result<(), String> {
        let Some(core) = &world.desk.core else { return Ok(()) };
        for work in works.iter().filter(|work| work.is_training()) {
            let dropping = core
                .journal
                .iter()
                .flat_map(|(_, entries)| entries)
                .any(|e| matches!(e, Entry::Dropped { group, .. } if *group == work.group));
            holds(dropping || self.decided.contains(&work.group), || format!("{work} is given up and no row says so"))?;
        }
        Ok(())
    }
}
