//! A process that is stopped while it is connected is ordered to be replaced within idle time, silence and a little, if the
//! coordinator runs all the while.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::{Command, Event};
use std::collections::BTreeMap;
use std::time::Duration;

/// 3 s until its connection is given up, 5 s of silence, and what looking takes.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Replacement {
    /// Processes that were connected to this coordinator.
    known: BTreeMap<u32, u64>,
    /// Stopped ones, since when.
    stopped: BTreeMap<u32, Duration>,
}

impl Invariant for Replacement {
    fn name(&self) -> &'static str {
        "replacement"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Began { .. } => (self.known, self.stopped) = Default::default(),
            Seen::Heard(Event::Connected { conn, pid, worker, .. }) => {
                // One process of a name counts: the newest.
                self.known.retain(|known, _| world.procs.get(known).is_none_or(|p| p.worker != *worker));
                self.stopped.retain(|stopped, _| self.known.contains_key(stopped));
                self.known.insert(*pid, conn.0);
            }
            Seen::Stopped { pid, on: false } => {
                let connected = |wire| world.desk.core.as_ref().is_some_and(|core| core.conns.contains_key(wire));
                if self.known.get(pid).is_some_and(connected) {
                    self.stopped.insert(*pid, world.now);
                }
            }
            Seen::Stopped { pid, on: true } | Seen::Died { pid, .. } | Seen::Ordered(Command::Replace { pid, .. }) => {
                self.stopped.remove(pid);
                if matches!(seen, Seen::Died { .. }) {
                    self.known.remove(pid);
                }
            }
            // A coordinator that stood still has not looked.
            Seen::DeskMoved => self.stopped.values_mut().for_each(|since| *since = world.now),
            _ => {}
        }
        Ok(())
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        if !world.desk.moves() {
            return Ok(());
        }
        let late = self.stopped.iter().find(|(_, since)| world.now > **since + LIMIT);
        holds(late.is_none(), || {
            let who = late.and_then(|(pid, _)| world.procs.get(pid)).map(|p| p.worker);
            format!("{who:?} has been silent for {} s and nobody replaces it", LIMIT.as_secs())
        })
    }
}
