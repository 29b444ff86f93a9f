//! How messages travel between the actors of a run: control frames in order on one bidirectional stream, bulk frames
//! (trajectory batches, scores, steps) each on a stream of its own and acknowledged by the receiver.
//!
//! Invariants
//! - **T1** every call has a deadline; an error names the peer.
//! - **T2** a bulk send returns `Ok` only after the receiver's handler called [`Ack::accept`]: journalled, not merely read.
//!   A lost acknowledgement makes the sender send again; receivers treat (epoch, group, attempt) as an idempotent id.
//! - **T3** length is checked before allocation; queues are bounded and exert backpressure on the stream.
use async_trait::async_trait;
use cohort_protocol::{CodecError, Frame};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::oneshot;

/// Why a connection or a send failed. All mean: this connection is done, make another.
#[derive(Debug, Error, Clone)]
pub enum TransportError {
    /// The peer went away or never was there.
    #[error("connection to {peer} lost: {why}")]
    Lost {
        /// Whom.
        peer: String,
        /// The transport's reason.
        why: String,
    },
    /// A deadline passed.
    #[error("{peer} did not {what} within {after:?}")]
    Deadline {
        /// Whom.
        peer: String,
        /// What was waited for ("accept a frame", "acknowledge a batch").
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The peer's bytes were refused.
    #[error("{peer} sent a bad frame: {source}")]
    Codec {
        /// Whom.
        peer: String,
        /// Which rule it broke.
        source: CodecError,
    },
}

/// Answers a bulk frame. Dropped without `accept`, the sender sees its stream reset and sends again.
#[derive(Debug)]
pub struct Ack(Option<oneshot::Sender<()>>);

impl Ack {
    /// An acknowledgement and its waiting side.
    #[must_use]
    pub fn pair() -> (Self, oneshot::Receiver<()>) {
        let (tx, rx) = oneshot::channel();
        (Self(Some(tx)), rx)
    }

    /// The frame has been taken over for good.
    pub fn accept(mut self) {
        if let Some(tx) = self.0.take() {
            // The sender may be gone; it will send again and be recognised by the id.
            let _ = tx.send(());
        }
    }
}

/// A received frame.
#[derive(Debug)]
pub enum Inbound {
    /// From the control stream, in order.
    Control(Frame),
    /// From a stream of its own.
    Bulk(Frame, Ack),
}

/// Payload bytes that went through a connection, by kind of stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Control bytes sent.
    pub control_sent: u64,
    /// Control bytes received.
    pub control_received: u64,
    /// Bulk bytes sent.
    pub bulk_sent: u64,
    /// Bulk bytes received.
    pub bulk_received: u64,
}

/// One connection between two actors' processes.
#[async_trait]
pub trait Connection: Send + Sync {
    /// Who is at the other end, for messages.
    fn peer(&self) -> String;
    /// Sends on the control stream, in order.
    async fn send(&self, frame: Frame) -> Result<(), TransportError>;
    /// Sends on a stream of its own; returns when the peer accepted it (T2).
    async fn send_bulk(&self, frame: Frame) -> Result<(), TransportError>;
    /// The next frame of either kind. An error ends the connection.
    async fn recv(&self) -> Result<Inbound, TransportError>;
    /// Bytes so far.
    fn traffic(&self) -> Traffic;
    /// Ends it; the peer sees the reason.
    fn close(&self, reason: &str);
}

/// The coordinator's side.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The next connection.
    async fn accept(&self) -> Result<Arc<dyn Connection>, TransportError>;
}

/// A worker's side: knows where the coordinator is and how to reach it.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// A new connection.
    async fn connect(&self) -> Result<Arc<dyn Connection>, TransportError>;
}
