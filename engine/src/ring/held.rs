//! Slots for roles that share one engine: what is published is there already, so that a slot holds its name only.
use super::{RingError, WeightRing};
use crate::WeightSource;
use cohort_model::WeightSet;
use std::sync::{Mutex, PoisonError};

/// Version and digest by slot. A fetch is refused: it would be made by an engine that lacks the weights, and here there is
/// none but the one that published them.
#[derive(Debug)]
pub struct HeldRing {
    slots: Vec<Mutex<Option<(u64, u64)>>>,
}

impl HeldRing {
    /// Empty slots.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self { slots: (0..slots).map(|_| Mutex::new(None)).collect() }
    }

    fn slot(&self, slot: u32) -> Result<&Mutex<Option<(u64, u64)>>, RingError> {
        self.slots.get(slot as usize).ok_or(RingError::NoSlot { slot, slots: self.slots() })
    }
}

impl WeightRing for HeldRing {
    fn publish_through(
        &self,
        slot: u32,
        version: u64,
        weights: &dyn WeightSource,
        midway: &mut dyn FnMut(),
    ) -> Result<u64, RingError> {
        let digest = weights.digest();
        midway();
        self.publish_name(slot, version, digest)?;
        Ok(digest)
    }

    fn publish_name(&self, slot: u32, version: u64, digest: u64) -> Result<bool, RingError> {
        *self.slot(slot)?.lock().unwrap_or_else(PoisonError::into_inner) = Some((version, digest));
        Ok(true)
    }

    fn shares_engine(&self) -> bool {
        true
    }

    fn fetch(&self, slot: u32, version: u64) -> Result<WeightSet, RingError> {
        let found = match *self.slot(slot)?.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((held, _)) => format!("the name of version {held} without its weights, which the shared engine has left"),
            None => "nothing".into(),
        };
        Err(RingError::Version { slot, found, want: version })
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }
}
