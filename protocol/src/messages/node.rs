//! Between the head node's agent and the agents of other hosts: which workers a host runs, and who gets which chunk of the
//! weights from whom.
use super::wire_messages;
use crate::{PolicyVersion, Role, WorkerId};
use bincode::{Decode, Encode};

/// A host is there, after each connection.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct NodeReady {
    /// Workers that it offers to run, by role.
    pub offers: Vec<(Role, u16)>,
    /// UDP port on which it serves weights to other hosts.
    pub weights_port: u16,
    /// Complete weights that it holds.
    pub held: Option<PolicyVersion>,
}

/// A certificate is wanted for a worker that was assigned to this host.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct CertificateRequest {
    /// Whose.
    pub worker: WorkerId,
    /// An uncompressed point on P-256, 65 bytes.
    pub public_key: Vec<u8>,
}

/// A process of a host, for `status`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ChildState {
    /// `rollout-4`.
    pub name: String,
    /// Its process while it runs.
    pub pid: Option<u32>,
    /// running, stopping, waiting or ended.
    pub phase: String,
    /// Restarts so far.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
}

/// A worker of this host waits for weights.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WantWeights {
    /// Which.
    pub version: PolicyVersion,
    /// Slot of the head node's ring in which the coordinator says they are.
    pub slot: u32,
}

/// One chunk of a version's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct ChunkName {
    /// Weights of this policy.
    pub version: PolicyVersion,
    /// Which chunk, from 0.
    pub chunk: u32,
}

/// A chunk did not arrive, or not as the manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ChunkFailed {
    /// Which.
    pub name: ChunkName,
    /// Who was to give it.
    pub from: WorkerId,
    /// What happened.
    pub why: String,
}

wire_messages! {
    /// From a host's agent.
    NodeToHead {
        /// After connecting.
        1 => Ready(NodeReady),
        /// For an assigned worker.
        2 => Certify(CertificateRequest),
        /// When they change.
        3 => Children(Vec<ChildState>),
        /// Each second: chunks taken since the agent started.
        4 => Beat(u64),
        /// Answered by `Manifest` or `NoWeights`.
        5 => WantWeights(WantWeights),
        /// A chunk is here, checked.
        6 => Held(ChunkName),
        /// Give it from elsewhere.
        7 => ChunkFailed(ChunkFailed),
        /// It leaves in order; the reason is for the log.
        8 => Leaving(String),
    } removed []
}

/// What a host must know of the run. Workers that were started with other facts are started anew.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RunFacts {
    /// The resolved configuration, TOML.
    pub config: String,
    /// UDP port of the coordinator, on the address that the host dialled.
    pub coordinator_port: u16,
    /// UDP port on which the head node serves weights, on the same address.
    pub weights_port: u16,
    /// Slots of a host's weight ring.
    pub slots: u32,
}

/// A certificate for a worker of this host, or the wish that it ask for a new one. A host of version 4 or older passes over
/// such a wish.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Certificate {
    /// Whose.
    pub worker: WorkerId,
    /// DER; empty: ask for a new one.
    pub der: Vec<u8>,
}

/// A worker hangs: kill its process, which is then started again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Replace {
    /// Which.
    pub worker: WorkerId,
    /// Its process; a successor of it is left alone.
    pub pid: u32,
    /// How that showed.
    pub why: String,
}

/// What a version's weights consist of.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Manifest {
    /// Which.
    pub version: PolicyVersion,
    /// Digest of the weights, as [`crate::StepCommit::weights_digest`].
    pub digest: u64,
    /// Bytes of the directory of tensors, which comes first.
    pub directory_bytes: u64,
    /// Bytes of the values behind it.
    pub value_bytes: u64,
    /// Bytes of a chunk; the last one may be shorter.
    pub chunk_bytes: u32,
    /// BLAKE3 of each chunk, 32 bytes each, in order. From version [`HASHES_IN_PARTS`](crate::version::HASHES_IN_PARTS) on those of
    /// the first chunks, perhaps none; `Hashes` messages follow.
    pub hashes: Vec<u8>,
}

/// The hashes of further chunks. Those of the last ones say that the weights were still whole when they had been hashed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ChunkHashes {
    /// Of which version.
    pub version: PolicyVersion,
    /// The first chunk of these.
    pub first: u32,
    /// BLAKE3 of each, 32 bytes each, in order.
    pub hashes: Vec<u8>,
}

/// Take a chunk from a host.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FetchChunk {
    /// Which.
    pub name: ChunkName,
    /// Who has it.
    pub from: WorkerId,
    /// `IP:PORT` where that host serves weights; empty: the head node, where it is known.
    pub address: String,
}

/// Weights that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NoWeights {
    /// Which.
    pub version: PolicyVersion,
    /// Why.
    pub why: String,
}

wire_messages! {
    /// To a host's agent.
    HeadToNode {
        /// Answer to `Ready`, before `Assign`.
        1 => Run(RunFacts),
        /// The workers it is to run from now on, all of them.
        2 => Assign(Vec<WorkerId>),
        /// Answer to `Certify`.
        3 => Certificate(Certificate),
        /// One of its workers hangs.
        4 => Replace(Replace),
        /// Answer to `WantWeights`; `Fetch` messages follow.
        5 => Manifest(Manifest),
        /// Take this, then say `Held` or `ChunkFailed`.
        6 => Fetch(FetchChunk),
        /// Answer to `WantWeights`.
        7 => NoWeights(NoWeights),
        /// Stop all workers and leave; the reason is for the log.
        8 => Leave(String),
        /// Hosts that were let go, all of them: what was certified for them opens no door any more.
        9 => Revoked(Vec<u16>),
        /// After `Manifest`, before the `Fetch` of these chunks; from version
        /// [`HASHES_IN_PARTS`](crate::version::HASHES_IN_PARTS) on.
        10 => Hashes(ChunkHashes),
    } removed []
}
