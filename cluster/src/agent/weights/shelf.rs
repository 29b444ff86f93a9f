//! Which slot of this host's ring holds which version: what can be given to other hosts, whole or as what changed.
use super::delta;
use super::deltas::{Deltas, Made};
use super::manifest;
use super::tally::Tally;
use bytes::Bytes;
use cohort_engine::SharedRing;
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::node::{ChunkName, Manifest};
use cohort_protocol::messages::weights::ChunkSince;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Slots by version. A version that is only partly here may be on it: whoever takes a chunk checks its hash.
#[derive(Debug, Default)]
pub struct Shelf {
    held: Mutex<BTreeMap<PolicyVersion, Held>>,
    deltas: Deltas,
}

#[derive(Debug)]
struct Held {
    slot: u32,
    manifest: Arc<Manifest>,
    /// What left this host of it.
    given: Tally,
}

impl Shelf {
    /// From now on `slot` holds, or will hold, this version, and no other.
    pub fn put(&self, slot: u32, manifest: Arc<Manifest>) {
        let mut held = self.held();
        clear(&mut held, slot);
        held.insert(manifest.version, Held { slot, manifest, given: Tally::default() });
    }

    /// Further hashes of a version's chunks.
    pub fn learn(&self, version: PolicyVersion, first: u32, hashes: &[u8]) {
        if let Some(held) = self.held().get_mut(&version) {
            // Those that do not follow are somebody else's mistake, and their chunks have no hash here.
            let _ = manifest::learn(Arc::make_mut(&mut held.manifest), first, hashes);
        }
    }

    /// What is known of a version that is here.
    pub fn manifest(&self, version: PolicyVersion) -> Option<Manifest> {
        self.held().get(&version).map(|held| held.manifest.as_ref().clone())
    }

    /// A slot is about to hold something else.
    pub fn clear(&self, slot: u32) {
        clear(&mut self.held(), slot);
    }

    /// A chunk's bytes as they are in the ring now.
    ///
    /// # Errors
    /// A sentence: there is no such version or chunk here.
    pub fn read(&self, ring: &SharedRing, name: ChunkName) -> Result<Vec<u8>, String> {
        let (slot, manifest) = self.find(name.version)?;
        let bytes = bytes_of(ring, slot, &manifest, name.chunk)?;
        self.gave(name.version, |given| given.whole(bytes.len()));
        Ok(bytes)
    }

    /// What changed in a chunk since another version; `None`: it is to be given whole.
    pub fn since(&self, ring: &SharedRing, asked: &ChunkSince) -> Made {
        let ChunkSince { name, base, base_hash } = *asked;
        let make = || {
            let (slot, manifest) = self.find(name.version)?;
            let (base_slot, base) = self.find(base)?;
            if !manifest::alike(&base, &manifest) || manifest::hash(&base, name.chunk) != Some(base_hash) {
                return Err("the other version is another one here".to_owned());
            }
            // Both as they are known: of a slot that is being written nothing is made, and nothing kept.
            let sound = |slot, manifest: &Manifest| {
                let bytes = bytes_of(ring, slot, manifest, name.chunk)?;
                let fits = manifest::fits(manifest, name.chunk, &bytes);
                if fits { Ok(bytes) } else { Err(format!("version {} is not whole", manifest.version)) }
            };
            let (old, new) = (sound(base_slot, &base)?, sound(slot, &manifest)?);
            Ok::<Made, String>(delta::between(&old, &new, manifest::phase(&manifest, name.chunk)).map(Bytes::from))
        };
        // Why it cannot be made is no fault: the host takes the chunk whole.
        let made = self.deltas.get(name, base_hash, make).ok().flatten()?;
        self.gave(name.version, |given| given.delta(made.len()));
        Some(made)
    }

    /// Keeps a delta that led to the chunk, to give it on.
    pub fn keep(&self, taken: &ChunkSince, delta: Bytes) {
        self.deltas.put(taken.name, taken.base_hash, delta);
    }

    /// What left this host of a version that it still has.
    pub fn given(&self, version: PolicyVersion) -> Option<Tally> {
        self.held().get(&version).map(|held| held.given)
    }

    fn gave(&self, version: PolicyVersion, count: impl FnOnce(&mut Tally)) {
        if let Some(held) = self.held().get_mut(&version) {
            count(&mut held.given);
        }
    }

    fn find(&self, version: PolicyVersion) -> Result<(u32, Arc<Manifest>), String> {
        let held = self.held();
        let found = held.get(&version).ok_or_else(|| format!("version {version} is not here"))?;
        Ok((found.slot, found.manifest.clone()))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<PolicyVersion, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clear(held: &mut BTreeMap<PolicyVersion, Held>, slot: u32) {
    for (version, gone) in held.extract_if(.., |_, held| held.slot == slot) {
        if !gone.given.is_empty() {
            gone.given.log(version, "weights_given");
        }
    }
}

fn bytes_of(ring: &SharedRing, slot: u32, manifest: &Manifest, chunk: u32) -> Result<Vec<u8>, String> {
    if manifest::chunks(manifest).is_ok_and(|n| chunk >= n) {
        return Err(format!("version {} has no chunk {chunk}", manifest.version));
    }
    let (at, len) = manifest::range(manifest, chunk);
    ring.image_bytes(slot, at, len).map_err(|e| e.to_string())
}
