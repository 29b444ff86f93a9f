//! One coordinator an epoch, each later than all before it.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_protocol::Epoch;

#[derive(Debug, Default)]
pub(super) struct Epochs {
    last: Epoch,
}

impl Invariant for Epochs {
    fn name(&self) -> &'static str {
        "epochs"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        let Seen::Began { epoch, .. } = seen else { return Ok(()) };
        let last = std::mem::replace(&mut self.last, *epoch);
        holds(last < *epoch, || format!("epoch {epoch} begins after epoch {last}"))
    }
}
