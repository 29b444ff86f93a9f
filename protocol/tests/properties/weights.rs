//! Weights between hosts.
use crate::records::{text, version};
use cohort_protocol::messages::node::ChunkName;
use cohort_protocol::messages::weights::{Chunk, ChunkDelta, ChunkSince, FetcherToHolder, Gone, HolderToFetcher};
use proptest::collection::vec;
use proptest::prelude::*;

pub(crate) fn chunk_name() -> impl Strategy<Value = ChunkName> {
    (version(), any::<u32>()).prop_map(|(version, chunk)| ChunkName { version, chunk })
}

pub(crate) fn fetcher_to_holder() -> impl Strategy<Value = FetcherToHolder> {
    prop_oneof![
        chunk_name().prop_map(FetcherToHolder::Give),
        (chunk_name(), version(), any::<[u8; 32]>()).prop_map(|(name, base, base_hash)| FetcherToHolder::GiveSince(ChunkSince {
            name,
            base,
            base_hash
        })),
    ]
}

pub(crate) fn holder_to_fetcher() -> impl Strategy<Value = HolderToFetcher> {
    let bytes = || vec(any::<u8>(), 0..40);
    prop_oneof![
        (chunk_name(), bytes()).prop_map(|(name, bytes)| HolderToFetcher::Chunk(Chunk { name, bytes: bytes.into() })),
        (chunk_name(), text()).prop_map(|(name, why)| HolderToFetcher::Gone(Gone { name, why })),
        (chunk_name(), version(), bytes()).prop_map(|(name, base, bytes)| HolderToFetcher::Delta(ChunkDelta {
            name,
            base,
            bytes: bytes.into()
        })),
    ]
}
