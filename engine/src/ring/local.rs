//! Slots in this process's memory, for roles with engines of their own.
use super::{RingError, WeightRing};
use cohort_model::WeightSet;
use std::sync::{Mutex, PoisonError};

/// Slots in this process's memory.
#[derive(Debug)]
pub struct LocalRing {
    slots: Vec<LocalSlot>,
}

/// Version, digest and weights.
type LocalSlot = Mutex<Option<(u64, u64, WeightSet)>>;

impl LocalRing {
    /// Empty slots.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self { slots: (0..slots).map(|_| Mutex::new(None)).collect() }
    }

    fn slot(&self, slot: u32) -> Result<&LocalSlot, RingError> {
        self.slots.get(slot as usize).ok_or(RingError::NoSlot { slot, slots: self.slots() })
    }
}

impl WeightRing for LocalRing {
    fn publish_through(&self, slot: u32, version: u64, weights: &WeightSet, midway: &mut dyn FnMut()) -> Result<u64, RingError> {
        let digest = weights.digest();
        let mut held = self.slot(slot)?.lock().unwrap_or_else(PoisonError::into_inner);
        *held = None;
        midway();
        *held = Some((version, digest, weights.clone()));
        Ok(digest)
    }

    fn fetch(&self, slot: u32, version: u64) -> Result<WeightSet, RingError> {
        match &*self.slot(slot)?.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((held, digest_then, weights)) if *held == version => {
                if weights.digest() != *digest_then {
                    return Err(RingError::Corrupt { slot, why: "its digest has changed".into() });
                }
                Ok(weights.clone())
            }
            Some((held, ..)) => Err(RingError::Version { slot, found: format!("version {held}"), want: version }),
            None => Err(RingError::Version { slot, found: "nothing".into(), want: version }),
        }
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }
}
