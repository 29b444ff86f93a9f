//! Between processes: QUIC with TLS 1.3 and certificates of the run on both sides.
//!
//! Invariants
//! - **Q1** a connection exists for the caller only after both certificates were verified: the dialer waits for the
//!   listener's answer on the control stream, which comes after its check.
//! - **Q2** memory per connection is bounded: windows for bytes that nobody has read, a budget for bulk frames that the
//!   application holds, queues for frames that wait.
//! - **Q3** a stalled bulk frame never stalls the control stream: the connection's window holds the windows of all streams.
//! - **Q4** a coordinator that comes back on its socket is noticed at the next sign of life (1 s), not after the idle time.
//!
//! Streams, all opened by whoever has something to say: the dialer's first is the control stream; each bulk frame has a
//! bidirectional stream of its own whose way back carries one byte, the acknowledgement. `docs/wire.md` has the bytes.
mod stream;
#[cfg(test)]
mod tests;

use super::framed::{CLOSED, Framed, Terms};
use super::refusal::{self, Shown};
use super::{
    BACKLOG, COORDINATOR, Connection, Dialer, EndpointError, Listener, TransportError, TransportOptions, local_ip, name_at, tls,
};
use crate::certs::{Current, Identity, Revocations, name_of};
use async_trait::async_trait;
use cohort_protocol::{RunId, WorkerId};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TokioRuntime, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustls::AlertDescription;
use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use stream::QuicStreams;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::warn;

/// What both sides say they speak, in TLS.
const ALPN: &[u8] = b"cohort/1";
/// Bytes of a datagram that are tried on each path, above Ethernet's 1,500: a loopback and networks of jumbo frames carry
/// them, and what is spent a datagram is spent a quarter as often. quinn hands the kernel up to ten at once, which must fit
/// into 64 KiB: longer ones would be lost.
pub const PAYLOAD: u16 = 6500;
/// The coordinator's endpoint.
pub struct QuicListener {
    endpoint: Endpoint,
    address: SocketAddr,
    incoming: AsyncMutex<mpsc::Receiver<Arc<dyn Connection>>>,
    acceptor: AbortHandle,
}

/// The endpoint of whoever dials: a worker, or an agent of a host.
pub struct QuicDialer {
    endpoint: Endpoint,
    to: WorkerId,
    at: SocketAddr,
    server_name: String,
    shown: Shown,
    revocations: Revocations,
    options: TransportOptions,
}

impl QuicListener {
    /// Listens on a bound socket (bound by the node agent, so that a restarted coordinator keeps its address). Call it
    /// within a tokio runtime.
    pub fn new(socket: UdpSocket, identity: &Identity, options: TransportOptions) -> Result<Self, EndpointError> {
        Self::listen(socket, identity, options, false)
    }

    /// As [`Self::new`], and lets in who has no certificate at all: `verify_peer` then fails for every place, and only a
    /// token may be shown ([`Handshake::Enrol`](cohort_protocol::messages::handshake::Handshake::Enrol)).
    pub fn with_strangers(socket: UdpSocket, identity: &Identity, options: TransportOptions) -> Result<Self, EndpointError> {
        Self::listen(socket, identity, options, true)
    }

    fn listen(socket: UdpSocket, identity: &Identity, options: TransportOptions, strangers: bool) -> Result<Self, EndpointError> {
        let address =
            socket.local_addr().map_err(|source| EndpointError::Socket { kind: "UDP", address: "unbound".into(), source })?;
        let failed = |source| EndpointError::Socket { kind: "UDP", address: address.to_string(), source };
        socket.set_nonblocking(true).map_err(failed)?;
        let (crypto, current) = server_crypto(identity, strangers)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(Arc::new(transport(&options)?))
            .migration(false)
            .max_incoming(BACKLOG)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(1 << 20);
        let endpoint = Endpoint::new(server_endpoint(identity), Some(config), socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let acceptor =
            tokio::spawn(accept_all(endpoint.clone(), (current, Revocations::of(identity)), options, sender)).abort_handle();
        Ok(Self { endpoint, address, incoming: AsyncMutex::new(incoming), acceptor })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection and refuses new ones; peers see the reason.
    pub fn close(&self, reason: &str) {
        self.acceptor.abort();
        self.endpoint.close(VarInt::from_u32(CLOSED), reason.as_bytes());
    }
}

impl Drop for QuicListener {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl fmt::Debug for QuicListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicListener").field("address", &self.address).finish_non_exhaustive()
    }
}

#[async_trait]
impl Listener for QuicListener {
    async fn accept(&self) -> Result<Arc<dyn Connection>, TransportError> {
        match self.incoming.lock().await.recv().await {
            Some(connection) => Ok(connection),
            None => Err(TransportError::Lost { peer: self.address.to_string(), why: "the listener is closed".into() }),
        }
    }
}

impl QuicDialer {
    /// Will reach the coordinator of `identity`'s run at `coordinator`. Call it within a tokio runtime.
    pub fn new(coordinator: SocketAddr, identity: &Identity, options: TransportOptions) -> Result<Self, EndpointError> {
        Self::to(COORDINATOR, coordinator, identity, options)
    }

    /// Will reach whoever holds the place `to` of `identity`'s run.
    pub fn to(to: WorkerId, at: SocketAddr, identity: &Identity, options: TransportOptions) -> Result<Self, EndpointError> {
        Self::dial(to, at, tls::client(identity, ALPN)?, Revocations::of(identity), options)
    }

    /// Will reach `to` of `run` without a certificate of its own, trusting the authority (PEM) that a token names.
    pub fn stranger(
        to: WorkerId,
        at: SocketAddr,
        run: RunId,
        authority: &str,
        options: TransportOptions,
    ) -> Result<Self, EndpointError> {
        Self::dial(to, at, tls::stranger(to, authority, ALPN)?, Revocations::none(run), options)
    }

    fn dial(
        to: WorkerId,
        at: SocketAddr,
        (crypto, shown): (rustls::ClientConfig, Shown),
        revocations: Revocations,
        options: TransportOptions,
    ) -> Result<Self, EndpointError> {
        let local = SocketAddr::new(local_ip(at.ip()), 0);
        let failed = |source| EndpointError::Socket { kind: "UDP", address: local.to_string(), source };
        let socket = UdpSocket::bind(local).map_err(failed)?;
        let mut endpoint =
            Endpoint::new(with_payload(EndpointConfig::default()), None, socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let crypto = QuicClientConfig::try_from(crypto).map_err(|e| EndpointError::Tls { who: to, why: e.to_string() })?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport(&options)?));
        endpoint.set_default_client_config(config);
        Ok(Self { endpoint, to, at, server_name: name_of(revocations.run(), to), shown, revocations, options })
    }

    async fn establish(&self) -> Result<Arc<dyn Connection>, TransportError> {
        let peer = self.address();
        let lost = |why: String| TransportError::Lost { peer: peer.clone(), why };
        let failed =
            |error: ConnectionError| refusal::of_dialled(peer.clone(), error.to_string(), refused_by_peer(&error), &self.shown);
        let connecting = self.endpoint.connect(self.at, &self.server_name).map_err(|error| lost(error.to_string()))?;
        let quic = connecting.await.map_err(|error| match error {
            ConnectionError::TimedOut => self.unanswered(self.options.idle),
            error => failed(error),
        })?;
        let opened = stream::open_control(&quic).await;
        // A listener that refuses this end's certificate does so after the dialler's half of the handshake.
        let (send, recv) = opened.map_err(|error| match quic.close_reason() {
            Some(reason) => failed(reason),
            None => lost(error.to_string()),
        })?;
        let terms = Terms { options: &self.options, revocations: self.revocations.clone(), slot: None };
        Ok(Framed::start(QuicStreams(quic), (send, recv), peer.clone(), terms))
    }
}

impl QuicDialer {
    fn unanswered(&self, after: Duration) -> TransportError {
        TransportError::Deadline { peer: self.address(), what: "complete a QUIC handshake", after }
    }
}

impl fmt::Debug for QuicDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicDialer").field("to", &self.to).field("at", &self.at).finish_non_exhaustive()
    }
}

#[async_trait]
impl Dialer for QuicDialer {
    fn address(&self) -> String {
        name_at(self.to, self.at)
    }

    async fn connect(&self) -> Result<Arc<dyn Connection>, TransportError> {
        let after = self.options.deadlines.connect;
        timeout(after, self.establish()).await.map_err(|_| self.unanswered(after))?
    }
}

/// Takes handshakes, each in a task of its own so that a slow one delays nobody, until the endpoint closes.
async fn accept_all(
    endpoint: Endpoint,
    (current, revocations): (Arc<Current>, Revocations),
    options: TransportOptions,
    accepted: mpsc::Sender<Arc<dyn Connection>>,
) {
    let slots = Arc::new(Semaphore::new(options.max_connections));
    let mut handshakes = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while handshakes.try_join_next().is_some() {}
        let peer = format!("worker at {}", incoming.remote_address());
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            warn!(target: "cohort::transport", peer, limit = options.max_connections, "connection_refused");
            incoming.refuse();
            continue;
        };
        let (accepted, current, revocations) = (accepted.clone(), current.clone(), revocations.clone());
        handshakes.spawn(async move {
            let handshake = async {
                let why = |error: ConnectionError| refusal::of_listening(error.to_string(), refused_by_peer(&error), &current);
                let quic = incoming.await.map_err(why)?;
                let opened = stream::accept_control(&quic).await;
                let (send, recv) = opened.map_err(|error| quic.close_reason().map_or_else(|| error.to_string(), why))?;
                let terms = Terms { options: &options, revocations, slot: Some(slot) };
                Ok::<_, String>(Framed::start(QuicStreams(quic), (send, recv), peer.clone(), terms))
            };
            match timeout(options.deadlines.connect, handshake).await {
                // Fails only when the listener is gone; the connection is then dropped, which closes it.
                Ok(Ok(connection)) => drop(accepted.send(connection).await),
                Ok(Err(why)) => warn!(target: "cohort::transport", peer, why, "handshake_failed"),
                Err(_) => warn!(target: "cohort::transport", peer, why = "deadline", "handshake_failed"),
            }
        });
    }
}

/// Every limit explicit: the library's defaults (30 s, unbounded) do not suit a cluster. GSO stays on: it gives 3x.
fn transport(options: &TransportOptions) -> Result<TransportConfig, EndpointError> {
    options.check()?;
    let idle = IdleTimeout::try_from(options.idle).map_err(|_| EndpointError::Option {
        name: "idle",
        value: format!("{:?}", options.idle),
        why: "it does not fit a QUIC timeout",
    })?;
    let streams = options.max_bulk_streams.saturating_add(1);
    // Q3: all streams full and unread still leave the control stream its window, with room for a partial frame more.
    let window = u64::from(options.stream_window) * (u64::from(streams) + 1);
    let window = VarInt::from_u64(window).map_err(|_| EndpointError::Option {
        name: "stream_window",
        value: options.stream_window.to_string(),
        why: "times the streams it is over 2^62",
    })?;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(PAYLOAD);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(discovery))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(options.keep_alive))
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(options.stream_window.into())
        .receive_window(window)
        .send_window(u64::from(options.stream_window) * 8)
        .datagram_receive_buffer_size(None);
    Ok(config)
}

/// An endpoint that tells the peers of its predecessor on the same socket at once that their connections are gone: it
/// knows its predecessor's connection ids, and signs the reset as the predecessor would have.
fn server_endpoint(identity: &Identity) -> EndpointConfig {
    let secret = identity.derive_secret("quic stateless reset");
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)));
    let ids = identity.derive_secret("quic connection ids");
    let ids = u64::from_le_bytes(*ids.first_chunk().unwrap_or(&[0; 8]));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    with_payload(config)
}

/// Lets peers send datagrams as long as this end sends them.
fn with_payload(mut config: EndpointConfig) -> EndpointConfig {
    // Fails only out of 1200..=65527.
    let _ = config.max_udp_payload_size(PAYLOAD);
    config
}

fn server_crypto(identity: &Identity, strangers: bool) -> Result<(QuicServerConfig, Arc<Current>), EndpointError> {
    let (crypto, current) = tls::server(identity, strangers, ALPN)?;
    let crypto =
        QuicServerConfig::try_from(crypto).map_err(|e| EndpointError::Tls { who: identity.who(), why: e.to_string() })?;
    Ok((crypto, current))
}

/// The alert with which the peer ended a handshake.
fn refused_by_peer(error: &ConnectionError) -> Option<AlertDescription> {
    let ConnectionError::ConnectionClosed(close) = error else { return None };
    // RFC 9001, 4.8: a TLS alert is this and its number.
    let alert = u64::from(close.error_code).checked_sub(0x100)?;
    u8::try_from(alert).ok().map(AlertDescription::from)
}
