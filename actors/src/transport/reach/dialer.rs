//! One dialer over UDP and TCP: which of them gets through.
use super::{Blocked, FORGET, Ways};
use crate::transport::quic::QuicDialer;
use crate::transport::tcp::TlsDialer;
use crate::transport::{Connection, Dialer, TransportError, name_at};
use async_trait::async_trait;
use cohort_protocol::WorkerId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// For QUIC to be answered before TCP is tried beside it: longer than a packet that was lost once takes to come again.
const PATIENCE: Duration = Duration::from_millis(1500);
/// For QUIC to be answered by a peer that has just answered over TCP.
const PROOF: Duration = Duration::from_secs(1);

type Dialled = Result<Arc<dyn Connection>, TransportError>;

/// Reaches one place, over QUIC where that passes. [`Dialer::connect`] takes at most the deadline of a connection, and 1 s
/// more where the peer has answered over TCP.
#[derive(Debug)]
pub struct ReachDialer {
    pub(super) ways: Ways<QuicDialer, TlsDialer>,
    pub(super) to: WorkerId,
    pub(super) at: SocketAddr,
    pub(super) blocked: Arc<Blocked>,
}

impl ReachDialer {
    /// QUIC, unless it gets no answer and TCP does (R2).
    async fn whichever(&self, quic: &QuicDialer, tcp: &TlsDialer) -> Dialled {
        if self.blocked.holds(self.at.ip()) {
            return tcp.connect().await;
        }
        let begun = Instant::now();
        let mut over_quic = quic.connect();
        let mut silent = match timeout(PATIENCE, &mut over_quic).await {
            Ok(Err(error @ TransportError::Deadline { .. })) => Some(error),
            Ok(answer) => return self.passes(answer),
            Err(_) => None,
        };
        let mut over_tcp = std::pin::pin!(tcp.connect_since(begun));
        let dialled = loop {
            tokio::select! {
                answer = &mut over_quic, if silent.is_none() => match answer {
                    Err(error @ TransportError::Deadline { .. }) => silent = Some(error),
                    answer => return self.passes(answer),
                },
                dialled = &mut over_tcp => break dialled,
            }
        };
        match (dialled, silent) {
            (Ok(connection), _) => match timeout(PROOF, quic.connect()).await {
                Ok(Ok(better)) => {
                    connection.close("UDP passes too");
                    self.passes(Ok(better))
                }
                _ => Ok(self.taken(connection)),
            },
            (Err(_), None) => self.passes(over_quic.await),
            (Err(error), Some(silent)) => {
                Err(TransportError::Lost { peer: self.address(), why: format!("{silent}; over TCP: {error}") })
            }
        }
    }

    /// The peer has answered over UDP, whatever it said.
    fn passes(&self, answer: Dialled) -> Dialled {
        if answer.is_ok() && self.blocked.clear(self.at.ip()) {
            info!(target: "cohort::transport", peer = self.address(), "udp_passes_again");
        }
        answer
    }

    fn taken(&self, connection: Arc<dyn Connection>) -> Arc<dyn Connection> {
        if self.blocked.note(self.at.ip()) {
            warn!(target: "cohort::transport", peer = self.address(),
                why = "it answers over TCP and not over UDP at the same port: let UDP pass, or set cluster.transport = \"tcp\"",
                cost = "over TCP a lost packet holds up everything behind it, and each new process tries UDP for 2.5 s first",
                again_in = ?FORGET, "udp_blocked");
        }
        connection
    }
}

#[async_trait]
impl Dialer for ReachDialer {
    fn address(&self) -> String {
        name_at(self.to, self.at)
    }

    async fn connect(&self) -> Dialled {
        match &self.ways {
            Ways::Quic(quic) => quic.connect().await,
            Ways::Tcp(tcp) => tcp.connect().await,
            Ways::Both(quic, tcp) => self.whichever(quic, tcp).await,
        }
    }
}
