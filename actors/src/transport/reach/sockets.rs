//! Where a process listens: UDP and TCP at one port number of one address.
use super::{Carrier, Ways};
use crate::transport::EndpointError;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

/// Free ports that are tried where the system chooses: one that is free for TCP may be taken for UDP.
const TRIES: usize = 32;

/// Bound sockets of every way in.
#[derive(Debug)]
pub struct Sockets(pub(super) Ways<UdpSocket, TcpListener>);

impl Sockets {
    /// Binds what `carrier` needs; with port 0 the system chooses one that is free for all of it.
    ///
    /// # Errors
    /// As the system says.
    pub fn bind(address: SocketAddr, carrier: Carrier) -> io::Result<Self> {
        let mut bound = Self::bind_once(address, carrier);
        for _ in 1..TRIES {
            match &bound {
                Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
                _ => break,
            }
            bound = Self::bind_once(address, carrier);
        }
        bound
    }

    fn bind_once(address: SocketAddr, carrier: Carrier) -> io::Result<Self> {
        Ok(Self(match carrier {
            Carrier::Quic => Ways::Quic(UdpSocket::bind(address)?),
            Carrier::Tcp => Ways::Tcp(TcpListener::bind(address)?),
            Carrier::Auto => {
                let tcp = TcpListener::bind(address)?;
                Ways::Both(UdpSocket::bind(tcp.local_addr()?)?, tcp)
            }
        }))
    }

    /// Where they are bound.
    ///
    /// # Errors
    /// As the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Ways::Quic(udp) | Ways::Both(udp, _) => udp.local_addr(),
            Ways::Tcp(tcp) => tcp.local_addr(),
        }
    }

    /// As descriptors, for another process: of UDP, of TCP.
    #[must_use]
    pub fn into_descriptors(self) -> (Option<OwnedFd>, Option<OwnedFd>) {
        match self.0 {
            Ways::Quic(udp) => (Some(udp.into()), None),
            Ways::Tcp(tcp) => (None, Some(tcp.into())),
            Ways::Both(udp, tcp) => (Some(udp.into()), Some(tcp.into())),
        }
    }

    /// From the descriptors that another process bound for `carrier`; `take_udp` and `take_tcp` get those that it needs.
    ///
    /// # Errors
    /// Those of `take_udp` and `take_tcp`.
    pub fn from_descriptors<E>(
        carrier: Carrier,
        take_udp: impl FnOnce() -> Result<OwnedFd, E>,
        take_tcp: impl FnOnce() -> Result<OwnedFd, E>,
    ) -> Result<Self, E> {
        Ok(Self(carrier.ways(|| take_udp().map(UdpSocket::from), || take_tcp().map(TcpListener::from))?))
    }

    pub(super) fn address(&self) -> Result<SocketAddr, EndpointError> {
        let kind = if let Ways::Tcp(_) = self.0 { "TCP" } else { "UDP" };
        self.local_addr().map_err(|source| EndpointError::Socket { kind, address: "unbound".into(), source })
    }
}
