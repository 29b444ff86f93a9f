//! First frames of every connection.
use super::wire_messages;
use crate::{Epoch, RunId, WorkerId};
use bincode::{Decode, Encode};

/// A worker introduces itself.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Hello {
    /// Oldest protocol version it understands.
    pub protocol_min: u16,
    /// Newest.
    pub protocol_max: u16,
    /// The run it was started for.
    pub run: RunId,
    /// Its place.
    pub worker: WorkerId,
    /// Its process, for `status` (its own in-process id where it shares one).
    pub pid: u32,
    /// Which start of this place it is, from 0.
    pub incarnation: u32,
    /// Run numerics it will compute with, one line; must equal the run's.
    pub numerics: String,
}

/// The coordinator accepts.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Welcome {
    /// Version both will speak.
    pub protocol: u16,
    /// The coordinator's incarnation.
    pub epoch: Epoch,
}

/// A host wants to take part in a run and has a token, but no certificate yet.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Enrol {
    /// Oldest protocol version it understands.
    pub protocol_min: u16,
    /// Newest.
    pub protocol_max: u16,
    /// The run it has a token for.
    pub run: RunId,
    /// The token's secret.
    pub secret: [u8; 32],
    /// Its name, for people.
    pub host: String,
    /// Public half of the key that its certificate is to hold: an uncompressed point on P-256, 65 bytes.
    pub public_key: Vec<u8>,
}

/// The host has a place; its secret is used up.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Enrolled {
    /// Version both will speak.
    pub protocol: u16,
    /// Its place.
    pub node: WorkerId,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
}

/// The coordinator refuses, with the remedy in the text. The worker exits: it would be refused again.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Refused {
    /// Why.
    pub reason: String,
}

wire_messages! {
    /// First frames of every connection.
    Handshake {
        /// Worker to coordinator.
        1 => Hello(Hello),
        /// Coordinator to worker.
        2 => Welcome(Welcome),
        /// Coordinator to worker.
        3 => Refused(Refused),
        /// Host without a certificate to the head node.
        4 => Enrol(Enrol),
        /// Head node to such a host.
        5 => Enrolled(Enrolled),
    } removed []
}
