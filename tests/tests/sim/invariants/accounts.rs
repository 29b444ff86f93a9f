//! Groups generated are groups consumed, dropped and in flight, by the rows; and what the controller tells people about
//! them is what the rows say.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::Event;
use cohort_cluster::ledger::Entry;
use cohort_protocol::{GroupId, StepId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Accounts {
    generated: BTreeSet<GroupId>,
    in_flight: BTreeSet<GroupId>,
    intents: BTreeMap<StepId, Vec<GroupId>>,
    consumed: u64,
    dropped: u64,
    /// Whether the controller may know of less than the rows do.
    waits: bool,
}

impl Invariant for Accounts {
    fn name(&self) -> &'static str {
        "accounts"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Durable(entries) => self.take(entries)?,
            Seen::Heard(Event::Recorded(_)) | Seen::Began { .. } => self.waits = false,
            _ => {}
        }
        Ok(())
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        let (generated, open) = (self.generated.len() as u64, self.in_flight.len() as u64);
        let (consumed, dropped) = (self.consumed, self.dropped);
        holds(generated == consumed + dropped + open, || {
            format!("{generated} generated, {consumed} consumed, {dropped} dropped, {open} in flight")
        })?;
        let Some(core) = world.desk.core.as_ref().filter(|core| core.journal.is_empty() && !self.waits) else { return Ok(()) };
        let told = core.state.accounts();
        let told = (told.generated, told.consumed, told.dropped.values().sum::<u64>());
        holds(told == (generated, consumed, dropped), || {
            format!(
                "people hear of {told:?} groups generated, consumed and dropped, the rows say {:?}",
                (generated, consumed, dropped)
            )
        })
    }
}

impl Accounts {
    fn take(&mut self, entries: &[Entry]) -> Result<(), String> {
        self.waits = true;
        for entry in entries {
            match entry {
                Entry::Opened { group, .. } => {
                    holds(self.generated.insert(*group), || format!("group {group} is generated twice"))?;
                    self.in_flight.insert(*group);
                }
                Entry::Intent(intent) => drop(self.intents.insert(intent.step, intent.groups.clone())),
                Entry::Commit(commit) => {
                    for group in self.intents.get(&commit.step).into_iter().flatten() {
                        holds(self.in_flight.remove(group), || format!("group {group} is consumed and was not in flight"))?;
                        self.consumed += 1;
                    }
                }
                Entry::Dropped { group, .. } => {
                    holds(self.in_flight.remove(group), || format!("group {group} is dropped and was not in flight"))?;
                    self.dropped += 1;
                }
                _ => {}
            }
        }
        Ok(())
    }
}
