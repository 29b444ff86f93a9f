//! No slot of the ring is written while a worker that this coordinator told of it has not said that it has that version, or
//! failed to take it, and never the slot that workers are told of.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::{Command, Event};
use cohort_protocol::PolicyVersion;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Connections that were told of a slot, and of which version.
    reading: BTreeMap<u64, (u32, PolicyVersion)>,
}

impl Invariant for Slots {
    fn name(&self) -> &'static str {
        "ring"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Began { .. } => self.reading.clear(),
            Seen::Ordered(Command::Weights { conn, slot, version, .. }) => {
                self.reading.insert(conn.0, (*slot, *version));
            }
            Seen::Heard(
                Event::RolloutReady { conn, version: Some(said), .. } | Event::SwapFailed { conn, version: said, .. },
            ) => {
                self.reading.retain(|wire, (_, told)| *wire != conn.0 || told != said);
            }
            Seen::Heard(Event::Disconnected { conn, .. }) | Seen::Ordered(Command::Replace { conn, .. }) => {
                self.reading.remove(&conn.0);
            }
            Seen::Heard(Event::Connected { worker, conn, .. }) => {
                // The older connection of the same worker is over.
                let same = |wire: &u64| world.net.wires.get(wire).is_none_or(|w| w.peer == *worker);
                self.reading.retain(|wire, _| wire == &conn.0 || !same(wire));
            }
            Seen::Ordered(Command::Publish { slot, version, .. }) => {
                let reader = self.reading.iter().find(|(_, (read, _))| read == slot).map(|(wire, _)| *wire);
                holds(reader.is_none(), || {
                    format!("version {version} goes to slot {slot}, which connection {reader:?} may be reading")
                })?;
            }
            _ => {}
        }
        Ok(())
    }
}
