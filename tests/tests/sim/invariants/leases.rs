//! A group is leased to at most one worker at a time; attempts only grow, over all epochs; what a worker had that is gone
//! is no longer leased to it.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::{Command, Event, Work};
use cohort_cluster::ledger::Entry;
use cohort_protocol::{AttemptId, GroupId};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Leases {
    highest: BTreeMap<GroupId, AttemptId>,
    /// Connection and attempt of every lease that is out.
    out: BTreeMap<Work, (u64, AttemptId)>,
}

impl Invariant for Leases {
    fn name(&self) -> &'static str {
        "leases"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Began { .. } => self.out.clear(),
            Seen::Durable(entries) => {
                for entry in entries {
                    if let Entry::Leased { group, attempt, .. } = entry {
                        let before = self.highest.insert(*group, *attempt).unwrap_or_default();
                        holds(before < *attempt, || format!("group {group}: attempt {attempt} follows attempt {before}"))?;
                    }
                }
            }
            Seen::Ordered(Command::Lease { conn, work, attempt, .. }) => {
                let held = self.out.insert(*work, (conn.0, *attempt));
                holds(held.is_none(), || format!("{work} is leased to {} and to {held:?} (connection, attempt)", conn.0))?;
            }
            Seen::Ordered(Command::CancelLease { work, .. }) => drop(self.out.remove(work)),
            Seen::Heard(Event::Trajectories { conn, work, attempt, .. } | Event::LeaseFailed { conn, work, attempt, .. }) => {
                self.out.retain(|held, lease| held != work || *lease != (conn.0, *attempt));
            }
            Seen::Heard(Event::Disconnected { conn, .. }) => self.gone(world, conn.0)?,
            Seen::Ordered(Command::Replace { conn, .. }) => self.gone(world, conn.0)?,
            Seen::Heard(Event::Connected { worker, conn, .. }) => {
                // A newer connection of a worker ends the older one.
                let older: Vec<u64> = world
                    .net
                    .wires
                    .iter()
                    .filter(|(wire, w)| w.peer == *worker && **wire != conn.0 && self.out.values().any(|(held, _)| held == *wire))
                    .map(|(wire, _)| *wire)
                    .collect();
                older.into_iter().try_for_each(|wire| self.gone(world, wire))?;
            }
            _ => {}
        }
        Ok(())
    }
}

impl Leases {
    fn gone(&mut self, world: &World, wire: u64) -> Result<(), String> {
        let had: Vec<(Work, AttemptId)> =
            self.out.iter().filter(|(_, (held, _))| *held == wire).map(|(work, (_, attempt))| (*work, *attempt)).collect();
        for (work, attempt) in had {
            self.out.remove(&work);
            let still = world.desk.core.as_ref().and_then(|core| core.state.leased_attempt(&work));
            holds(still != Some(attempt.0), || format!("{work} is still leased to connection {wire}, which is gone"))?;
        }
        Ok(())
    }
}
