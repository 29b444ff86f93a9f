//! Between a host that takes weights and one that holds them. Chunks travel as bulk.
use super::node::ChunkName;
use super::wire_messages;
use bincode::{Decode, Encode};

wire_messages! {
    /// From the host that takes.
    FetcherToHolder {
        /// Answered by `Chunk` or `Gone`; many may be under way.
        1 => Give(ChunkName),
    } removed []
}

/// A chunk's bytes. Whether they are right is told by the manifest's hash, not by who sends them.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Chunk {
    /// Which.
    pub name: ChunkName,
    /// Its bytes.
    pub bytes: Vec<u8>,
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
    } removed []
}
