//! Between processes where UDP does not pass: TLS 1.3 over TCP with the same certificates as QUIC, and the same promises.
//!
//! Invariants
//! - **P1** a connection exists for the caller only after both certificates were verified: the listener speaks first, after its
//!   check, and the dialer waits for that.
//! - **P2** memory per connection is bounded as over QUIC: a window for each stream, as many streams as were granted, the same
//!   budget and queues above them.
//! - **P3** a stalled bulk frame never stalls the control stream: whoever reads the connection waits for no reader of a stream.
//! - **P4** a silent peer is noticed as fast as over QUIC: each end says something every `keep_alive` and gives the other up
//!   after `idle`.
//!
//! What it costs against QUIC: a lost packet holds up every stream of the connection until it came again, control included.
//!
//! Files: `record` the bytes; `outbox`, `inbox` the pure halves: what goes out next, what has arrived; `streams` the tasks
//! around them. Multiplexing is our own because what a multiplexer of byte streams leaves out is most of what is asked for
//! here: an answer to each bulk frame, giving one up, control before bulk, a reason at the end, a deadline on silence.
mod inbox;
#[cfg(test)]
mod model;
mod outbox;
mod record;
mod streams;
#[cfg(test)]
mod tests;

use super::framed::{Framed, Terms};
use super::refusal::{self, Shown};
use super::{BACKLOG, COORDINATOR, Connection, Dialer, EndpointError, Listener, TransportError, TransportOptions, name_at, tls};
use crate::certs::{Current, Identity, Revocations, name_of};
use async_trait::async_trait;
use cohort_protocol::{RunId, WorkerId};
use rustls::AlertDescription;
use rustls::pki_types::{CertificateDer, ServerName};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use streams::{Far, Grants, TcpStreams};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::warn;

/// What both sides say they speak, in TLS.
const ALPN: &[u8] = b"cohort-tcp/1";
/// First byte of each end.
const BEGIN: u8 = 1;
/// After the system had no descriptor left for a connection.
const BREATH: Duration = Duration::from_millis(100);

/// The listening side.
pub struct TlsListener {
    address: SocketAddr,
    incoming: AsyncMutex<mpsc::Receiver<Arc<dyn Connection>>>,
    acceptor: AbortHandle,
}

/// Whoever dials: a worker, or an agent of a host.
pub struct TlsDialer {
    connector: TlsConnector,
    to: WorkerId,
    at: SocketAddr,
    server_name: ServerName<'static>,
    shown: Shown,
    revocations: Revocations,
    options: TransportOptions,
}

impl TlsListener {
    /// Listens on a bound socket. Call it within a tokio runtime.
    pub fn new(socket: std::net::TcpListener, identity: &Identity, options: TransportOptions) -> Result<Self, EndpointError> {
        Self::listen(socket, identity, options, false)
    }

    /// As [`Self::new`], and lets in who has no certificate at all, for a token and nothing else.
    pub fn with_strangers(
        socket: std::net::TcpListener,
        identity: &Identity,
        options: TransportOptions,
    ) -> Result<Self, EndpointError> {
        Self::listen(socket, identity, options, true)
    }

    fn listen(
        socket: std::net::TcpListener,
        identity: &Identity,
        options: TransportOptions,
        strangers: bool,
    ) -> Result<Self, EndpointError> {
        options.check()?;
        let failed = |address: String| move |source| EndpointError::Socket { kind: "TCP", address, source };
        let address = socket.local_addr().map_err(failed("unbound".into()))?;
        socket.set_nonblocking(true).map_err(failed(address.to_string()))?;
        let socket = TcpListener::from_std(socket).map_err(failed(address.to_string()))?;
        let (crypto, current) = tls::server(identity, strangers, ALPN)?;
        let acceptor = TlsAcceptor::from(Arc::new(crypto));
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let acceptor =
            tokio::spawn(accept_all(socket, (acceptor, current, Revocations::of(identity)), options, sender)).abort_handle();
        Ok(Self { address, incoming: AsyncMutex::new(incoming), acceptor })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl fmt::Debug for TlsListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsListener").field("address", &self.address).finish_non_exhaustive()
    }
}

#[async_trait]
impl Listener for TlsListener {
    async fn accept(&self) -> Result<Arc<dyn Connection>, TransportError> {
        match self.incoming.lock().await.recv().await {
            Some(connection) => Ok(connection),
            None => Err(TransportError::Lost { peer: self.address.to_string(), why: "the listener is closed".into() }),
        }
    }
}

impl TlsDialer {
    /// Will reach the coordinator of `identity`'s run.
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
        options.check()?;
        let server_name = ServerName::try_from(name_of(revocations.run(), to))
            .map_err(|e| EndpointError::Tls { who: to, why: e.to_string() })?;
        Ok(Self { connector: TlsConnector::from(Arc::new(crypto)), to, at, server_name, shown, revocations, options })
    }

    async fn establish(&self) -> Result<Arc<dyn Connection>, TransportError> {
        let lost = |error: io::Error| refusal::of_dialled(self.address(), explain(&error), refused_by_peer(&error), &self.shown);
        let tcp = TcpStream::connect(self.at).await.map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let mut tls = self.connector.connect(self.server_name.clone(), tcp).await.map_err(lost)?;
        let grants = hear(&mut tls).await.map_err(lost)?;
        say(&mut tls, &self.options).await.map_err(lost)?;
        let certificate = first(tls.get_ref().1.peer_certificates());
        let far = Far { remote: self.at, certificate, grants };
        let (streams, control) = TcpStreams::start(tls, far, &self.options);
        let terms = Terms { options: &self.options, revocations: self.revocations.clone(), slot: None };
        Ok(Framed::start(streams, control, self.address(), terms))
    }
}

impl TlsDialer {
    /// A connection, by the deadline of one that was begun then.
    pub(super) async fn connect_since(&self, begun: Instant) -> Result<Arc<dyn Connection>, TransportError> {
        let after = self.options.deadlines.connect;
        let established = timeout_at(begun + after, self.establish()).await;
        established.map_err(|_| TransportError::Deadline { peer: self.address(), what: "complete a TCP handshake", after })?
    }
}

impl fmt::Debug for TlsDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsDialer").field("to", &self.to).field("at", &self.at).finish_non_exhaustive()
    }
}

#[async_trait]
impl Dialer for TlsDialer {
    fn address(&self) -> String {
        name_at(self.to, self.at)
    }

    async fn connect(&self) -> Result<Arc<dyn Connection>, TransportError> {
        self.connect_since(Instant::now()).await
    }
}

/// Takes handshakes, each in a task of its own so that a slow one delays nobody, until the listener is dropped.
async fn accept_all(
    socket: TcpListener,
    (acceptor, current, revocations): (TlsAcceptor, Arc<Current>, Revocations),
    options: TransportOptions,
    accepted: mpsc::Sender<Arc<dyn Connection>>,
) {
    let slots = Arc::new(Semaphore::new(options.max_connections));
    let mut handshakes = JoinSet::new();
    loop {
        let (tcp, remote) = match socket.accept().await {
            Ok(incoming) => incoming,
            Err(error) => {
                // A peer that left again, or no descriptor: neither is the end of the listener.
                warn!(target: "cohort::transport", why = %error, "accept_failed");
                sleep(BREATH).await;
                continue;
            }
        };
        while handshakes.try_join_next().is_some() {}
        let peer = format!("worker at {remote}");
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            warn!(target: "cohort::transport", peer, limit = options.max_connections, "connection_refused");
            continue;
        };
        let (accepted, acceptor, current) = (accepted.clone(), acceptor.clone(), current.clone());
        let revocations = revocations.clone();
        handshakes.spawn(async move {
            let terms = Terms { options: &options, revocations, slot: Some(slot) };
            match timeout(options.deadlines.connect, admit(tcp, remote, &acceptor, terms)).await {
                // Fails only when the listener is gone; the connection is then dropped, which closes it.
                Ok(Ok(connection)) => drop(accepted.send(connection).await),
                Ok(Err(error)) => {
                    let why = refusal::of_listening(explain(&error), refused_by_peer(&error), &current);
                    warn!(target: "cohort::transport", peer, why, "handshake_failed");
                }
                Err(_) => warn!(target: "cohort::transport", peer, why = "deadline", "handshake_failed"),
            }
        });
    }
}

async fn admit(tcp: TcpStream, remote: SocketAddr, acceptor: &TlsAcceptor, terms: Terms<'_>) -> io::Result<Arc<dyn Connection>> {
    tcp.set_nodelay(true)?;
    let mut tls = acceptor.accept(tcp).await?;
    // P1: only here is the dialer's certificate verified, and it says nothing before it has heard this.
    say(&mut tls, terms.options).await?;
    let grants = hear(&mut tls).await?;
    let certificate = first(tls.get_ref().1.peer_certificates());
    let (streams, control) = TcpStreams::start(tls, Far { remote, certificate, grants }, terms.options);
    Ok(Framed::start(streams, control, format!("worker at {remote}"), terms))
}

/// Says what this end grants.
async fn say(io: &mut (impl AsyncWrite + Unpin), options: &TransportOptions) -> io::Result<()> {
    let mut opening = vec![BEGIN];
    opening.extend_from_slice(&options.stream_window.to_le_bytes());
    opening.extend_from_slice(&options.max_bulk_streams.to_le_bytes());
    io.write_all(&opening).await?;
    io.flush().await
}

/// What the other end grants.
async fn hear(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Grants> {
    let mut kind = [0];
    io.read_exact(&mut kind).await?;
    if kind != [BEGIN] {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the first byte is {}", kind[0])));
    }
    Ok(Grants { window: io.read_u32_le().await?, max_bulks: io.read_u32_le().await? })
}

fn first(chain: Option<&[CertificateDer<'_>]>) -> Option<CertificateDer<'static>> {
    chain.and_then(|chain| chain.first()).map(|certificate| certificate.clone().into_owned())
}

/// The alert with which the peer ended a handshake.
fn refused_by_peer(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// Plainer than the system's words where the peer just closed.
fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the handshake was refused: the peer closed the connection".to_owned(),
        _ => error.to_string(),
    }
}
