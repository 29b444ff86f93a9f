//! Between a host that takes weights and one that holds them. Chunks travel as bulk.
use super::node::ChunkName;
use super::wire_messages;
use crate::PolicyVersion;
use crate::codec::Blob;
use bincode::{Decode, Encode};
use bytes::Bytes;

/// A chunk that is wanted, and the same chunk of an older version, which the taker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct ChunkSince {
    /// Which.
    pub name: ChunkName,
    /// The older version.
    pub base: PolicyVersion,
    /// BLAKE3 of the chunk in that version. A holder that has other bytes there gives the chunk whole.
    pub base_hash: [u8; 32],
}

wire_messages! {
    /// From the host that takes.
    FetcherToHolder {
        /// Answered by `Chunk` or `Gone`; many may be under way.
        1 => Give(ChunkName),
        /// Answered by `Delta`, `Chunk` or `Gone`, from version [`WEIGHT_DELTAS`](crate::version::WEIGHT_DELTAS) on.
        2 => GiveSince(ChunkSince),
    } removed []
}

/// A chunk's bytes. Whether they are right is told by the manifest's hash, not by who sends them.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[bincode(decode_context = "Bytes")]
pub struct Chunk {
    /// Which.
    pub name: ChunkName,
    /// Its bytes.
    pub bytes: Blob,
}

/// What changed in a chunk since an older version. It is no longer than the chunk, and whether it is right is told by the manifest's
/// hash of the chunk that it leads to.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[bincode(decode_context = "Bytes")]
pub struct ChunkDelta {
    /// Which.
    pub name: ChunkName,
    /// The older version, as in `GiveSince`.
    pub base: PolicyVersion,
    /// The differences, packed: `docs/wire.md`.
    pub bytes: Blob,
}

/// The chunk is not here, or no longer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Gone {
    /// Which.
    pub name: ChunkName,
    /// Why.
    pub why: String,
}

wire_messages! {
    /// From the host that holds.
    HolderToFetcher {
        /// Bulk.
        1 => Chunk(Chunk),
        /// Ask elsewhere.
        2 => Gone(Gone),
        /// Bulk. Answer to `GiveSince` where it is shorter than the chunk.
        3 => Delta(ChunkDelta),
    } removed []
}
