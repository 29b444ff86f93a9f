//! One listener on UDP and TCP.
use super::Ways;
use crate::transport::quic::QuicListener;
use crate::transport::tcp::TlsListener;
use crate::transport::{Connection, Listener, TransportError};
use async_trait::async_trait;
use std::net::SocketAddr;
use std::sync::Arc;

/// Takes connections over whatever they come.
#[derive(Debug)]
pub struct ReachListener {
    pub(super) ways: Ways<QuicListener, TlsListener>,
    pub(super) address: SocketAddr,
}

impl ReachListener {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

#[async_trait]
impl Listener for ReachListener {
    async fn accept(&self) -> Result<Arc<dyn Connection>, TransportError> {
        match &self.ways {
            Ways::Quic(quic) => quic.accept().await,
            Ways::Tcp(tcp) => tcp.accept().await,
            Ways::Both(quic, tcp) => tokio::select! {
                connection = quic.accept() => connection,
                connection = tcp.accept() => connection,
            },
        }
    }
}
