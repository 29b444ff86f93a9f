//! Which slot of this host's ring holds which version: what can be given to other hosts.
use super::manifest;
use cohort_engine::SharedRing;
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::node::{ChunkName, Manifest};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Slots by version. A version that is only partly here may be on it: whoever takes a chunk checks its hash.
#[derive(Debug, Default)]
pub struct Shelf(Mutex<BTreeMap<PolicyVersion, (u32, Manifest)>>);

impl Shelf {
    /// From now on `slot` holds, or will hold, this version, and no other.
    pub fn put(&self, slot: u32, manifest: Manifest) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (held, _)| *held != slot);
        all.insert(manifest.version, (slot, manifest));
    }

    /// A slot is about to hold something else.
    pub fn clear(&self, slot: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, (held, _)| *held != slot);
    }

    /// A chunk's bytes as they are in the ring now.
    ///
    /// # Errors
    /// A sentence: there is no such version or chunk here.
    pub fn read(&self, ring: &SharedRing, name: ChunkName) -> Result<Vec<u8>, String> {
        let (slot, at, len) = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((slot, held)) = all.get(&name.version) else {
                return Err(format!("version {} is not here", name.version));
            };
            if manifest::chunks(held).is_ok_and(|n| name.chunk >= n) {
                return Err(format!("version {} has no chunk {}", name.version, name.chunk));
            }
            let (at, len) = manifest::range(held, name.chunk);
            (*slot, at, len)
        };
        let mut bytes = vec![0; len];
        ring.read_image(slot, at, &mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }
}
