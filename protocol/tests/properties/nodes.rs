//! Between the head node's agent and the agents of other hosts.
use crate::records::{text, version};
use crate::weights::chunk_name;
use cohort_protocol::messages::node::{
    Certificate, CertificateRequest, ChildState, ChunkFailed, ChunkHashes, FetchChunk, HeadToNode, Manifest, NoWeights,
    NodeReady, NodeToHead, Replace, RunFacts, WantWeights,
};
use cohort_protocol::{Role, WorkerId};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Rollout), Just(Role::Reward), Just(Role::Learner), Just(Role::Node)]
}

fn worker() -> impl Strategy<Value = WorkerId> {
    (role(), any::<u16>()).prop_map(|(role, index)| WorkerId { role, index })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..70)
}

fn child() -> impl Strategy<Value = ChildState> {
    (text(), of(any::<u32>()), text(), any::<u32>(), of(text())).prop_map(|(name, pid, phase, restarts, last_exit)| ChildState {
        name,
        pid,
        phase,
        restarts,
        last_exit,
    })
}

pub(crate) fn node_to_head() -> impl Strategy<Value = NodeToHead> {
    let ready = (vec((role(), any::<u16>()), 0..4), any::<u16>(), of(version()));
    prop_oneof![
        ready.prop_map(|(offers, weights_port, held)| NodeToHead::Ready(NodeReady { offers, weights_port, held })),
        (worker(), bytes()).prop_map(|(worker, public_key)| NodeToHead::Certify(CertificateRequest { worker, public_key })),
        vec(child(), 0..4).prop_map(NodeToHead::Children),
        any::<u64>().prop_map(NodeToHead::Beat),
        (version(), any::<u32>()).prop_map(|(version, slot)| NodeToHead::WantWeights(WantWeights { version, slot })),
        chunk_name().prop_map(NodeToHead::Held),
        (chunk_name(), worker(), text()).prop_map(|(name, from, why)| NodeToHead::ChunkFailed(ChunkFailed { name, from, why })),
        text().prop_map(NodeToHead::Leaving),
    ]
}

pub(crate) fn head_to_node() -> impl Strategy<Value = HeadToNode> {
    let facts = (text(), any::<(u16, u16, u32)>()).prop_map(|(config, (coordinator_port, weights_port, slots))| RunFacts {
        config,
        coordinator_port,
        weights_port,
        slots,
    });
    let manifest = (version(), any::<(u64, u64, u64, u32)>(), bytes()).prop_map(
        |(version, (digest, directory_bytes, value_bytes, chunk_bytes), hashes)| Manifest {
            version,
            digest,
            directory_bytes,
            value_bytes,
            chunk_bytes,
            hashes,
        },
    );
    prop_oneof![
        facts.prop_map(HeadToNode::Run),
        vec(worker(), 0..4).prop_map(HeadToNode::Assign),
        (worker(), bytes()).prop_map(|(worker, der)| HeadToNode::Certificate(Certificate { worker, der })),
        (worker(), any::<u32>(), text()).prop_map(|(worker, pid, why)| HeadToNode::Replace(Replace { worker, pid, why })),
        manifest.prop_map(HeadToNode::Manifest),
        (chunk_name(), worker(), text()).prop_map(|(name, from, address)| HeadToNode::Fetch(FetchChunk { name, from, address })),
        (version(), text()).prop_map(|(version, why)| HeadToNode::NoWeights(NoWeights { version, why })),
        text().prop_map(HeadToNode::Leave),
        vec(any::<u16>(), 0..4).prop_map(HeadToNode::Revoked),
        (version(), any::<u32>(), bytes()).prop_map(|(version, first, hashes)| HeadToNode::Hashes(ChunkHashes {
            version,
            first,
            hashes
        })),
    ]
}
