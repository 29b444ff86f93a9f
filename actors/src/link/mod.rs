//! The typed session of one worker with its coordinator, on top of a [`Connection`]: handshake, messages of one
//! direction each way, reconnection.
//!
//! Invariants
//! - **L1** no message passes before `Hello` was answered by `Welcome`; both sides know the negotiated version and epoch.
//! - **L2** a refusal is final and carries its reason; a loss is not: the worker reconnects until it is told to stop.
//! - **L3** a bulk message sent through a [`LinkSender`] is sent again, over as many connections as it takes, until it is
//!   accepted or the coordinator's epoch has changed; control messages are sent once.
mod accept;
mod enrol;
mod worker;

pub use accept::{AcceptTerms, Admitted, PeerLink, PeerSender, accept_node, accept_worker};
pub use enrol::enrol;
pub use worker::{LinkOptions, LinkSender, WorkerLink};

use crate::transport::{Ack, Connection, Inbound, TransportError};
use cohort_protocol::messages::WireMessage;
use cohort_protocol::{CodecError, Epoch};
use std::time::Duration;
use thiserror::Error;

/// How a session ends or fails to begin.
#[derive(Debug, Error, Clone)]
pub enum LinkError {
    /// The connection is done. A worker calls [`WorkerLink::reconnect`]; a coordinator waits for the worker to.
    #[error(transparent)]
    Lost(#[from] TransportError),
    /// A message of ours cannot be sent: it is over a limit. Sending it again would fail again.
    #[error("message not sent: {0}")]
    Unsendable(CodecError),
    /// The coordinator does not want this worker. Exit: it would be refused again.
    #[error("{peer} refused this worker: {reason}")]
    Refused {
        /// Whom.
        peer: String,
        /// Its reason, with the remedy.
        reason: String,
    },
    /// This coordinator does not want that worker, and has told it why.
    #[error("refused {peer}: {reason}")]
    Rejected {
        /// Whom.
        peer: String,
        /// The reason given.
        reason: String,
    },
    /// No session came about for too long.
    #[error("no coordinator at {address} for {after:?} ({tries} tries), last: {last}")]
    GaveUp {
        /// Where it was looked for.
        address: String,
        /// For how long.
        after: Duration,
        /// How many times.
        tries: u32,
        /// The last failure.
        last: String,
    },
    /// The coordinator has started anew: what was to be sent belongs to an epoch that is over. Drop it.
    #[error("coordinator epoch is {now}, the message belongs to epoch {then}")]
    StaleEpoch {
        /// Epoch when it was to be sent.
        then: Epoch,
        /// Epoch now.
        now: Epoch,
    },
    /// The peer kept dropping a bulk message unaccepted.
    #[error("{peer} dropped a bulk message {tries} times; its log says why")]
    NotAccepted {
        /// Whom.
        peer: String,
        /// How many times it was sent.
        tries: u32,
    },
    /// This process was told to leave.
    #[error("leaving: {reason}")]
    Shutdown {
        /// Why.
        reason: String,
    },
}

impl LinkError {
    /// Whether reconnecting is the answer.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

/// The next message; bytes that are none close the connection.
async fn receive<In: WireMessage>(connection: &dyn Connection) -> Result<(In, Option<Ack>), TransportError> {
    let (frame, ack) = match connection.recv().await? {
        Inbound::Control(frame) => (frame, None),
        Inbound::Bulk(frame, ack) => (frame, Some(ack)),
    };
    match In::from_frame(&frame) {
        Ok(message) => Ok((message, ack)),
        Err(source) => {
            connection.close("it sent a message that this build does not understand");
            Err(TransportError::Codec { peer: connection.peer(), source })
        }
    }
}

/// A failed send, told apart by what the caller can do about it.
fn send_error(error: TransportError) -> LinkError {
    match error {
        TransportError::Codec { source: source @ CodecError::TooLong { .. }, .. } => LinkError::Unsendable(source),
        other => LinkError::Lost(other),
    }
}
