//! Slots in this process's memory, for roles with engines of their own.
use super::{RingError, WeightRing};
use crate::WeightSource;
use cohort_model::spec::TensorSpec;
use cohort_model::{Tensor, WeightSet};
use std::collections::BTreeMap;
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
    fn publish_through(
        &self,
        slot: u32,
        version: u64,
        weights: &dyn WeightSource,
        midway: &mut dyn FnMut(),
    ) -> Result<u64, RingError> {
        let digest = weights.digest();
        let mut held = self.slot(slot)?.lock().unwrap_or_else(PoisonError::into_inner);
        *held = None;
        midway();
        *held = Some((version, digest, collect(slot, weights)?));
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

/// The weights as a set.
fn collect(slot: u32, weights: &dyn WeightSource) -> Result<WeightSet, RingError> {
    let empty = |t: TensorSpec| (t.name, Mutex::new(Tensor { data: vec![0.0; t.shape.iter().product()], shape: t.shape }));
    let tensors: BTreeMap<String, Mutex<Tensor>> = weights.tensors().into_iter().map(empty).collect();
    let taken = weights.each_part(&|part| {
        if let Some(tensor) = tensors.get(part.name) {
            let mut tensor = tensor.lock().unwrap_or_else(PoisonError::into_inner);
            tensor.data[part.start..][..part.values.len()].copy_from_slice(part.values);
        }
    });
    taken.map_err(|source| RingError::Source { slot, source })?;
    let whole = |(name, tensor): (String, Mutex<Tensor>)| (name, tensor.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(WeightSet(tensors.into_iter().map(whole).collect()))
}
