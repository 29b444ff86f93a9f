//! How messages travel between the actors of a run: control frames in order on one bidirectional stream, bulk frames
//! (trajectory batches, scores, steps) each on a stream of its own and acknowledged by the receiver.
//!
//! Invariants
//! - **T1** every call has a deadline; an error names the peer.
//! - **T2** a bulk send returns `Ok` only after the receiver's handler called [`Ack::accept`]: journalled, not merely read.
//!   A lost acknowledgement makes the sender send again; receivers treat (epoch, group, attempt) as an idempotent id.
//! - **T3** length is checked before allocation; queues are bounded and exert backpressure on the stream.
//! - **T4** every method is cancel-safe: a dropped `send` has queued its frame whole or not at all, a dropped `recv` lost
//!   none, a dropped `send_bulk` is one that may or may not have been accepted.
//! - **T5** control frames keep their order; bulk frames have none, neither among themselves nor against control frames.
//!
//! A seeded simulation fits behind the same three traits: nothing in them speaks of sockets or of real time, deadlines
//! run on tokio's clock (which a simulation pauses and advances), a connection is a value whose two ends meet in
//! [`Listener::accept`], and counters, order and acknowledgements are the transport's own, so that a simulated one may
//! delay, duplicate, reset and drop from its seed. `tests/transport.rs` is one body run over every implementation.
mod assemble;
mod framed;
pub mod inproc;
mod options;
pub mod quic;
pub mod reach;
mod refusal;
pub mod tcp;
mod tls;

pub use options::{EndpointError, TransportOptions};

use async_trait::async_trait;
use cohort_protocol::{CodecError, Frame, Role, RunId, WorkerId, limits};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::oneshot;

/// Why a connection or a send failed. All but [`TransportError::NotAccepted`] and a frame over the limit at its sender
/// mean: this connection is done, make another.
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
    /// The peer read a bulk frame and its handler dropped it: send it again on the same connection.
    #[error("{peer} did not take over a bulk frame")]
    NotAccepted {
        /// Whom.
        peer: String,
    },
    /// A certificate was refused, by this end or the other: nothing comes of trying again until somebody does as it says, or a
    /// renewal that is under way has come through.
    #[error("no connection to {peer}: {why}")]
    Certificate {
        /// Whom.
        peer: String,
        /// Whose certificate, until when it was valid, and the remedy.
        why: String,
    },
    /// The peer's certificate was taken away.
    #[error("{peer} is not let in: {why}")]
    Revoked {
        /// Whom.
        peer: String,
        /// Whose it is, and the remedy.
        why: String,
    },
    /// The peer has not proven to be who it says.
    #[error("{peer} says it is {claimed} of run {run}, which its certificate does not say: {why}")]
    Identity {
        /// Whom.
        peer: String,
        /// The place it claims.
        claimed: WorkerId,
        /// The run.
        run: RunId,
        /// What the certificate says instead.
        why: String,
    },
}

/// How long a transport waits before it gives up on a peer (T1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For a connection, handshake included. Default 5 s.
    pub connect: Duration,
    /// For room in the queue of control frames. Default 30 s.
    pub send: Duration,
    /// For a bulk frame's way there, its handler and the acknowledgement. Default 120 s.
    pub acknowledge: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), send: Duration::from_secs(30), acknowledge: Duration::from_secs(120) }
    }
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
    /// Its network address, where it has one.
    fn remote(&self) -> Option<SocketAddr> {
        None
    }
    /// What carries it: `in-process`, `quic` or `tcp`.
    fn carrier(&self) -> &'static str;
    /// Checks that the other end has proven to be `worker` of `run`; always `Ok` where both ends are one process.
    fn verify_peer(&self, run: RunId, worker: WorkerId) -> Result<(), TransportError>;
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
    /// Where the coordinator is, for messages.
    fn address(&self) -> String;
    /// A new connection.
    async fn connect(&self) -> Result<Arc<dyn Connection>, TransportError>;
}

/// Frames that wait in a connection for a reader; when it is full, the sender waits ([`Deadlines::send`]).
pub(crate) const CONTROL_QUEUE: usize = 64;
/// Bulk frames that wait for a reader; when it is full, their streams wait.
pub(crate) const BULK_QUEUE: usize = 16;

/// Connections that wait for [`Listener::accept`]; when it is full, further handshakes wait and then run into their
/// deadline.
pub(crate) const BACKLOG: usize = 64;
/// The coordinator's place, whose certificate a dialer expects.
pub(crate) const COORDINATOR: WorkerId = WorkerId { role: Role::Coordinator, index: 0 };

/// Whom a dialer reaches, for messages: a run has one coordinator; of other places there are several.
pub(crate) fn name_at(who: WorkerId, at: SocketAddr) -> String {
    if who == COORDINATOR { format!("{} at {at}", who.role) } else { format!("{who} at {at}") }
}

/// A local address from which `peer` can be reached and which, for a peer on this host, nobody else can reach.
pub(crate) fn local_ip(peer: IpAddr) -> IpAddr {
    match (peer.is_loopback(), peer.is_ipv4()) {
        (true, true) => Ipv4Addr::LOCALHOST.into(),
        (true, false) => Ipv6Addr::LOCALHOST.into(),
        (false, true) => Ipv4Addr::UNSPECIFIED.into(),
        (false, false) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Refuses a control frame that the peer would refuse.
pub(crate) fn check_control(frame: &Frame) -> Result<(), CodecError> {
    check_body(frame, limits::MAX_CONTROL_BODY)
}

/// Refuses a bulk frame that the peer would refuse.
pub(crate) fn check_bulk(frame: &Frame) -> Result<(), CodecError> {
    check_body(frame, limits::MAX_BULK_BODY)
}

fn check_body(frame: &Frame, limit: usize) -> Result<(), CodecError> {
    if frame.body.len() > limit {
        return Err(CodecError::TooLong { len: frame.body.len() as u64, limit: limit as u64 });
    }
    Ok(())
}

/// Counters behind [`Traffic`].
#[derive(Debug, Default)]
pub(crate) struct Meter {
    control_sent: AtomicU64,
    control_received: AtomicU64,
    bulk_sent: AtomicU64,
    bulk_received: AtomicU64,
}

impl Meter {
    pub(crate) fn control_sent(&self, frame_bytes: u64) {
        self.control_sent.fetch_add(frame_bytes, Ordering::Relaxed);
    }

    pub(crate) fn control_received(&self, frame_bytes: u64) {
        self.control_received.fetch_add(frame_bytes, Ordering::Relaxed);
    }

    pub(crate) fn bulk_sent(&self, frame_bytes: u64) {
        self.bulk_sent.fetch_add(frame_bytes, Ordering::Relaxed);
    }

    pub(crate) fn bulk_received(&self, frame_bytes: u64) {
        self.bulk_received.fetch_add(frame_bytes, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            control_sent: get(&self.control_sent),
            control_received: get(&self.control_received),
            bulk_sent: get(&self.bulk_sent),
            bulk_received: get(&self.bulk_received),
        }
    }
}
