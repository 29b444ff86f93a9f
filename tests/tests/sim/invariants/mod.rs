//! What must hold, one statement a file. Each looks at everything that was seen and, after every event, at the world; none
//! leans on what the real code says about itself where it can count for itself.
mod accounts;
mod ahead;
mod chunks;
mod drops;
mod durable;
mod egress;
mod epochs;
mod fencing;
mod hashes;
pub(crate) mod intents;
mod leases;
mod memory;
mod once;
mod partials;
mod recovery;
mod replacement;
mod ring;
mod rounds;
mod staleness;
mod versions;
mod weights;

use crate::seen::Seen;
use crate::setting::Setting;
use crate::world::World;
pub(crate) use intents::PLANTED;

/// A statement about every world.
pub(crate) trait Invariant: std::fmt::Debug {
    /// The name of its file.
    fn name(&self) -> &'static str;

    /// Something was seen.
    fn see(&mut self, _world: &World, _seen: &Seen) -> Result<(), String> {
        Ok(())
    }

    /// An event has been dealt with.
    fn check(&mut self, _world: &World) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
pub(crate) fn all(setting: &Setting) -> anyhow::Result<Vec<Box<dyn Invariant>>> {
    Ok(vec![
        Box::new(once::Once::default()),
        Box::new(accounts::Accounts::default()),
        Box::new(durable::Durable::default()),
        Box::new(fencing::Fencing::default()),
        Box::new(leases::Leases::default()),
        Box::new(epochs::Epochs::default()),
        Box::new(recovery::Recovery::default()),
        Box::new(staleness::Staleness::new(setting)),
        Box::new(ahead::Ahead::new(setting)),
        Box::new(drops::Drops::default()),
        Box::new(intents::Intents::of(setting)?),
        Box::new(weights::Weights::default()),
        Box::new(versions::Versions::default()),
        Box::new(partials::Partials::new(setting)),
        Box::new(rounds::Rounds::new(setting)),
        Box::new(ring::Slots::default()),
        Box::new(chunks::Chunks),
        Box::new(egress::Egress::default()),
        Box::new(hashes::Hashes::default()),
        Box::new(memory::Memory::new(setting)),
        Box::new(replacement::Replacement::default()),
    ])
}

/// `Err` with a sentence where something does not hold.
pub(crate) fn holds(it: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if it { Ok(()) } else { Err(otherwise()) }
}
