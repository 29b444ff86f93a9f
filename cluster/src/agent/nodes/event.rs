//! What the head node's agent hears of other hosts, and what it orders. Events are past tense, commands imperative.
use crate::agent::weights::spread::Host;
use cohort_protocol::messages::node::{ChunkHashes, HeadToNode, Manifest, NodeToHead};
use cohort_protocol::{PolicyVersion, WorkerId};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A connection of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A host was welcomed; its first message follows.
    Opened {
        /// Its connection.
        conn: ConnId,
        /// Which host.
        host: Host,
        /// From where it came.
        ip: Option<IpAddr>,
        /// What both ends understand.
        protocol: u16,
    },
    /// A host spoke.
    Said {
        /// Its connection.
        conn: ConnId,
        /// What it said.
        message: NodeToHead,
    },
    /// A connection ended.
    Closed {
        /// Which.
        conn: ConnId,
        /// Why.
        why: String,
    },
    /// What a version consists of is known, but for the hashes of its chunks.
    Announced(Manifest),
    /// Further chunks of a version that was announced have been hashed.
    HashedInPart(ChunkHashes),
    /// All of a version was hashed, or could not be.
    Hashed {
        /// Of which version.
        version: PolicyVersion,
        /// The manifest, or why there is none.
        result: Result<Manifest, String>,
    },
    /// A certificate was made.
    Certified {
        /// For whom.
        host: Host,
        /// Whose it is.
        worker: WorkerId,
        /// The certificate.
        der: Vec<u8>,
    },
    /// The coordinator says that a worker hangs.
    Hangs {
        /// Who.
        worker: WorkerId,
        /// Its process.
        pid: u32,
        /// Why that is thought.
        why: String,
    },
    /// These hosts were let go, all of them.
    Revoked(BTreeSet<Host>),
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Say something to a host.
    Tell {
        /// Its connection.
        conn: ConnId,
        /// What.
        message: HeadToNode,
    },
    /// End a connection.
    Close {
        /// Which.
        conn: ConnId,
        /// Why.
        why: String,
    },
    /// The workers of this host, all of them.
    Here(Vec<WorkerId>),
    /// Hash a slot of this host's ring, and say what comes of it as it comes.
    Hash {
        /// Version it must hold.
        version: PolicyVersion,
        /// The slot.
        slot: u32,
    },
    /// Make a certificate.
    Certify {
        /// For whom.
        host: Host,
        /// Whose it is to be.
        worker: WorkerId,
        /// Its public key.
        public_key: Vec<u8>,
    },
    /// Kill a worker of this host.
    Kill {
        /// Who.
        worker: WorkerId,
        /// Its process.
        pid: u32,
        /// Why.
        why: String,
    },
    /// Worth a line to people.
    Notice(String),
}
