//! A host counts a chunk of weights as taken only if its bytes are the learner's; whatever it gives on is therefore right.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;

#[derive(Debug)]
pub(super) struct Chunks;

impl Invariant for Chunks {
    fn name(&self) -> &'static str {
        "chunks"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        let Seen::ChunkKept { host, version, chunk, good } = seen else { return Ok(()) };
        holds(*good, || format!("host {host} takes chunk {chunk} of version {version} with other bytes than the learner's"))
    }
}
