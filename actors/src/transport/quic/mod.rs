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
mod connection;
mod stream;
#[cfg(test)]
mod tests;

use super::{Connection, Deadlines, Dialer, Listener, TransportError};
use crate::certs::{Identity, authority_of, name_of};
use async_trait::async_trait;
use cohort_protocol::{Role, RunId, WorkerId};
use connection::QuicConnection;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use rustls::client::WantsClientCert;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::warn;

/// What both sides say they speak, in TLS.
const ALPN: &[u8] = b"cohort/1";
/// The coordinator's place, whose certificate a dialer expects.
const COORDINATOR: WorkerId = WorkerId { role: Role::Coordinator, index: 0 };
/// Connections that wait for [`Listener::accept`]; when it is full, further handshakes wait and then run into their
/// deadline.
const BACKLOG: usize = 64;

/// Limits and times. The defaults detect a silent peer in 3 s and bound a connection's unread bytes by 70 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuicOptions {
    /// How often a silent connection is asked for a sign of life. Default 1 s.
    pub keep_alive: Duration,
    /// Silence after which it is lost. Default 3 s.
    pub idle: Duration,
    /// For calls.
    pub deadlines: Deadlines,
    /// Connections a listener holds at once; more are refused. Default 256.
    pub max_connections: usize,
    /// Unread bytes of one stream. Default 2 MiB.
    pub stream_window: u32,
    /// Bulk frames in flight from one peer; more wait at their sender. Default 32.
    pub max_bulk_streams: u32,
    /// Bytes of bulk frames read and not yet accepted by the application, one connection; more wait in their windows.
    /// At least the limit of one bulk frame. Default 512 MiB.
    pub bulk_budget: usize,
}

impl Default for QuicOptions {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(1),
            idle: Duration::from_secs(3),
            deadlines: Deadlines::default(),
            max_connections: 256,
            stream_window: 2 << 20,
            max_bulk_streams: 32,
            bulk_budget: 512 << 20,
        }
    }
}

/// An endpoint could not be made.
#[derive(Debug, Error)]
pub enum QuicError {
    /// The certificates do not fit together.
    #[error("TLS for {who}: {why}; issue the certificates of the run anew")]
    Tls {
        /// Whose.
        who: WorkerId,
        /// Why.
        why: String,
    },
    /// The socket.
    #[error("UDP socket {address}: {source}")]
    Socket {
        /// Its address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// An option out of its range.
    #[error("transport option {name} = {value}: {why}")]
    Option {
        /// Which.
        name: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        why: &'static str,
    },
}

/// The coordinator's endpoint.
pub struct QuicListener {
    endpoint: Endpoint,
    address: SocketAddr,
    incoming: AsyncMutex<mpsc::Receiver<Arc<QuicConnection>>>,
    acceptor: AbortHandle,
}

/// The endpoint of whoever dials: a worker, or an agent of a host.
pub struct QuicDialer {
    endpoint: Endpoint,
    to: WorkerId,
    at: SocketAddr,
    server_name: String,
    options: QuicOptions,
}

impl QuicListener {
    /// Listens on a bound socket (bound by the node agent, so that a restarted coordinator keeps its address). Call it
    /// within a tokio runtime.
    pub fn new(socket: UdpSocket, identity: &Identity, options: QuicOptions) -> Result<Self, QuicError> {
        Self::listen(socket, identity, options, false)
    }

    /// As [`Self::new`], and lets in who has no certificate at all: `verify_peer` then fails for every place, and only a
    /// token may be shown ([`Handshake::Enrol`](cohort_protocol::messages::handshake::Handshake::Enrol)).
    pub fn with_strangers(socket: UdpSocket, identity: &Identity, options: QuicOptions) -> Result<Self, QuicError> {
        Self::listen(socket, identity, options, true)
    }

    fn listen(socket: UdpSocket, identity: &Identity, options: QuicOptions, strangers: bool) -> Result<Self, QuicError> {
        let address = socket.local_addr().map_err(|source| QuicError::Socket { address: "unbound".into(), source })?;
        let failed = |source| QuicError::Socket { address: address.to_string(), source };
        socket.set_nonblocking(true).map_err(failed)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(server_tls(identity, strangers)?));
        config
            .transport_config(Arc::new(transport(&options)?))
            .migration(false)
            .max_incoming(BACKLOG)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(1 << 20);
        let endpoint = Endpoint::new(server_endpoint(identity), Some(config), socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let acceptor = tokio::spawn(accept_all(endpoint.clone(), options, sender)).abort_handle();
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
        self.endpoint.close(connection::CLOSED, reason.as_bytes());
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
    pub fn new(coordinator: SocketAddr, identity: &Identity, options: QuicOptions) -> Result<Self, QuicError> {
        Self::to(COORDINATOR, coordinator, identity, options)
    }

    /// Will reach whoever holds the place `to` of `identity`'s run.
    pub fn to(to: WorkerId, at: SocketAddr, identity: &Identity, options: QuicOptions) -> Result<Self, QuicError> {
        Self::dial(to, at, identity.run(), client_tls(identity)?, options)
    }

    /// Will reach `to` of `run` without a certificate of its own, trusting the authority (PEM) that a token names.
    pub fn stranger(to: WorkerId, at: SocketAddr, run: RunId, authority: &str, options: QuicOptions) -> Result<Self, QuicError> {
        let tls = |why: String| QuicError::Tls { who: to, why };
        let authority = authority_of(authority).map_err(|error| tls(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority).map_err(|error| tls(error.to_string()))?;
        let builder = client_builder(to, roots)?;
        Self::dial(to, at, run, finish_client(to, builder.with_no_client_auth())?, options)
    }

    fn dial(to: WorkerId, at: SocketAddr, run: RunId, tls: QuicClientConfig, options: QuicOptions) -> Result<Self, QuicError> {
        let local = SocketAddr::new(local_ip(at.ip()), 0);
        let failed = |source| QuicError::Socket { address: local.to_string(), source };
        let socket = UdpSocket::bind(local).map_err(failed)?;
        let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport(&options)?));
        endpoint.set_default_client_config(config);
        Ok(Self { endpoint, to, at, server_name: name_of(run, to), options })
    }

    async fn establish(&self) -> Result<Arc<dyn Connection>, TransportError> {
        let peer = self.address();
        let lost = |why: String| TransportError::Lost { peer: peer.clone(), why };
        let connecting = self.endpoint.connect(self.at, &self.server_name).map_err(|error| lost(error.to_string()))?;
        let quic = connecting.await.map_err(|error| lost(error.to_string()))?;
        let (send, recv) = stream::open_control(&quic).await.map_err(|error| lost(explain(&quic, &error)))?;
        Ok(QuicConnection::start(quic, send, recv, peer.clone(), &self.options, None))
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
        // A run has one coordinator; of other places there are several.
        let who = if self.to == COORDINATOR { self.to.role.to_string() } else { self.to.to_string() };
        format!("{who} at {}", self.at)
    }

    async fn connect(&self) -> Result<Arc<dyn Connection>, TransportError> {
        let after = self.options.deadlines.connect;
        timeout(after, self.establish()).await.map_err(|_| TransportError::Deadline {
            peer: self.address(),
            what: "complete a handshake",
            after,
        })?
    }
}

/// Takes handshakes, each in a task of its own so that a slow one delays nobody, until the endpoint closes.
async fn accept_all(endpoint: Endpoint, options: QuicOptions, accepted: mpsc::Sender<Arc<QuicConnection>>) {
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
        let accepted = accepted.clone();
        handshakes.spawn(async move {
            let handshake = async {
                let quic = incoming.await.map_err(|error| error.to_string())?;
                let (send, recv) = stream::accept_control(&quic).await.map_err(|error| explain(&quic, &error))?;
                Ok::<_, String>(QuicConnection::start(quic, send, recv, peer.clone(), &options, Some(slot)))
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

/// The connection's reason where it has one (a refused certificate), else the stream's.
fn explain(quic: &quinn::Connection, error: &io::Error) -> String {
    quic.close_reason().map_or_else(|| error.to_string(), |reason| reason.to_string())
}

/// Every limit explicit: the library's defaults (30 s, unbounded) do not suit a cluster. GSO stays on: it gives 3x.
fn transport(options: &QuicOptions) -> Result<TransportConfig, QuicError> {
    let largest = cohort_protocol::limits::MAX_BULK_BODY;
    if options.bulk_budget < largest + 1024 {
        let why = "it must hold one bulk frame of the largest size";
        return Err(QuicError::Option { name: "bulk_budget", value: options.bulk_budget.to_string(), why });
    }
    let idle = IdleTimeout::try_from(options.idle).map_err(|_| QuicError::Option {
        name: "idle",
        value: format!("{:?}", options.idle),
        why: "it does not fit a QUIC timeout",
    })?;
    let streams = options.max_bulk_streams.saturating_add(1);
    // Q3: all streams full and unread still leave the control stream its window, with room for a partial frame more.
    let window = u64::from(options.stream_window) * (u64::from(streams) + 1);
    let window = VarInt::from_u64(window).map_err(|_| QuicError::Option {
        name: "stream_window",
        value: options.stream_window.to_string(),
        why: "times the streams it is over 2^62",
    })?;
    let mut config = TransportConfig::default();
    config
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
    config
}

fn server_tls(identity: &Identity, strangers: bool) -> Result<QuicServerConfig, QuicError> {
    let failed = |why: String| QuicError::Tls { who: identity.who(), why };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), provider.clone());
    let verifier = if strangers { verifier.allow_unauthenticated() } else { verifier };
    let verifier = verifier.build().map_err(|error| failed(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key())
        .map_err(|error| failed(error.to_string()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // No tickets: a resumed session would not check the certificate again.
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(|error| failed(error.to_string()))
}

fn client_tls(identity: &Identity) -> Result<QuicClientConfig, QuicError> {
    let config = client_builder(identity.who(), roots(identity)?)?
        .with_client_auth_cert(identity.chain(), identity.key())
        .map_err(|error| QuicError::Tls { who: identity.who(), why: error.to_string() })?;
    finish_client(identity.who(), config)
}

fn client_builder(who: WorkerId, roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, QuicError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| QuicError::Tls { who, why: error.to_string() })?;
    Ok(builder.with_root_certificates(roots))
}

fn finish_client(who: WorkerId, mut config: ClientConfig) -> Result<QuicClientConfig, QuicError> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|error| QuicError::Tls { who, why: error.to_string() })
}

/// Only the run's own authority is trusted.
fn roots(identity: &Identity) -> Result<RootCertStore, QuicError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority()).map_err(|error| QuicError::Tls { who: identity.who(), why: error.to_string() })?;
    Ok(roots)
}

/// A local address from which `peer` can be reached and which, for a peer on this host, nobody else can reach.
fn local_ip(peer: IpAddr) -> IpAddr {
    match (peer.is_loopback(), peer.is_ipv4()) {
        (true, true) => Ipv4Addr::LOCALHOST.into(),
        (true, false) => Ipv6Addr::LOCALHOST.into(),
        (false, true) => Ipv4Addr::UNSPECIFIED.into(),
        (false, false) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
