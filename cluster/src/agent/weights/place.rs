//! Where a chunk goes: into a slot of the ring, whole or as what changed since a version in another slot.
//!
//! Invariant **P1**: the older version's chunk is copied before a delta is asked for, so that its slot is free to be written at any
//! time: what is in hand is the chunk that was named, or it is not used.
use super::delta;
use super::manifest;
use super::shelf::Shelf;
use bytes::Bytes;
use cohort_engine::SharedRing;
use cohort_protocol::messages::node::{ChunkName, Manifest};
use cohort_protocol::messages::weights::ChunkSince;
use std::sync::Arc;

/// How a chunk has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// Whole, in so many bytes.
    Whole(usize),
    /// As what changed, in so many bytes.
    Delta(usize),
}

/// Where a chunk goes.
#[derive(Debug, Clone)]
pub struct Place {
    /// Slot of the host's ring.
    pub slot: u32,
    /// What the version consists of.
    pub manifest: Arc<Manifest>,
    /// An older version that is whole, and its slot.
    pub(super) base: Option<(u32, Arc<Manifest>)>,
    pub(super) ring: Arc<SharedRing>,
    pub(super) shelf: Arc<Shelf>,
}

/// A chunk of the older version.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) since: ChunkSince,
    bytes: Vec<u8>,
}

impl Place {
    /// The older version's chunk, where there is one that is sound.
    pub(super) fn base(&self, name: ChunkName) -> Option<Base> {
        let (slot, base) = self.base.as_ref()?;
        let since = ChunkSince { name, base: base.version, base_hash: manifest::hash(base, name.chunk)? };
        let (at, len) = manifest::range(base, name.chunk);
        let bytes = self.ring.image_bytes(*slot, at, len).ok()?;
        // P1: it has not been written in the meantime.
        let sound = self.ring.image(*slot, base.version.0).is_ok_and(|now| now == manifest::image(base));
        sound.then_some(Base { since, bytes })
    }

    /// Checks (W1) and writes a chunk.
    pub(super) fn put(&self, chunk: u32, bytes: &[u8]) -> Result<Arrived, String> {
        if !manifest::fits(&self.manifest, chunk, bytes) {
            return Err("its bytes do not have the manifest's hash".to_owned());
        }
        let (offset, _) = manifest::range(&self.manifest, chunk);
        self.ring.write_image(self.slot, offset, bytes).map_err(|e| e.to_string())?;
        Ok(Arrived::Whole(bytes.len()))
    }

    /// Makes a chunk of what changed, checks and writes it, and keeps the delta to give it on.
    pub(super) fn put_delta(&self, base: Base, delta: Bytes) -> Result<Arrived, String> {
        let Base { since, mut bytes } = base;
        let chunk = since.name.chunk;
        if delta.len() >= bytes.len() {
            return Err(format!("a delta of {} bytes for a chunk of {}", delta.len(), bytes.len()));
        }
        delta::apply(&mut bytes, manifest::phase(&self.manifest, chunk), &delta)?;
        self.put(chunk, &bytes)?;
        let arrived = Arrived::Delta(delta.len());
        self.shelf.keep(&since, delta);
        Ok(arrived)
    }
}
