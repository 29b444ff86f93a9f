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
    } removed []
}
