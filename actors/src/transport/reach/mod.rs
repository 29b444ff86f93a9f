//! How a process is reached and reaches others: over QUIC, over TCP, or over whichever gets through.
//!
//! Invariants
//! - **R1** with [`Carrier::Auto`] a listener is there on UDP and TCP at one port number, and a dialer prefers QUIC.
//! - **R2** TCP is taken only where the peer answers over TCP and, asked again then, still not over UDP: a peer that is merely
//!   away, or was, does not look like blocked UDP. A peer that answers with a refusal has answered.
//! - **R3** a choice for TCP is said once, with its reason and its price, and holds for [`FORGET`] for every connection of this
//!   process to that address; then UDP is tried again with the next connection.
#[cfg(test)]
mod clocks;
mod dialer;
mod listener;
mod sockets;
#[cfg(test)]
mod tests;

pub use dialer::ReachDialer;
pub use listener::ReachListener;
pub use sockets::Sockets;

use super::quic::{QuicDialer, QuicListener};
use super::tcp::{TlsDialer, TlsListener};
use super::{EndpointError, TransportOptions};
use crate::certs::Identity;
use cohort_protocol::{RunId, WorkerId};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long TCP is taken at once for an address whose UDP was blocked.
pub const FORGET: Duration = Duration::from_secs(60);

/// What carries connections between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Carrier {
    /// QUIC, and TCP where UDP does not pass.
    #[default]
    Auto,
    /// QUIC alone.
    Quic,
    /// TCP alone.
    Tcp,
}

impl Carrier {
    /// Makes what is needed for each way.
    fn ways<Q, T, E>(self, quic: impl FnOnce() -> Result<Q, E>, tcp: impl FnOnce() -> Result<T, E>) -> Result<Ways<Q, T>, E> {
        Ok(match self {
            Self::Auto => Ways::Both(quic()?, tcp()?),
            Self::Quic => Ways::Quic(quic()?),
            Self::Tcp => Ways::Tcp(tcp()?),
        })
    }
}

/// What there is for each way: sockets, listeners, dialers.
#[derive(Debug)]
enum Ways<Q, T> {
    Quic(Q),
    Tcp(T),
    Both(Q, T),
}

impl<Q, T> Ways<Q, T> {
    fn map<R, S, E>(self, quic: impl FnOnce(Q) -> Result<R, E>, tcp: impl FnOnce(T) -> Result<S, E>) -> Result<Ways<R, S>, E> {
        Ok(match self {
            Self::Quic(q) => Ways::Quic(quic(q)?),
            Self::Tcp(t) => Ways::Tcp(tcp(t)?),
            Self::Both(q, t) => Ways::Both(quic(q)?, tcp(t)?),
        })
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        })
    }
}

impl FromStr for Carrier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "quic" => Ok(Self::Quic),
            "tcp" => Ok(Self::Tcp),
            other => Err(format!("{other:?} carries nothing here; use auto, quic or tcp")),
        }
    }
}

/// Makes a process's listeners and dialers; clones share what they have learned of blocked addresses.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    carrier: Carrier,
    options: TransportOptions,
    blocked: Arc<Blocked>,
}

impl Reach {
    /// Over `carrier`.
    #[must_use]
    pub fn new(carrier: Carrier, options: TransportOptions) -> Self {
        Self { carrier, options, blocked: Arc::default() }
    }

    /// Sockets to listen on.
    ///
    /// # Errors
    /// As the system says; the address is in use.
    pub fn bind(&self, address: SocketAddr) -> std::io::Result<Sockets> {
        Sockets::bind(address, self.carrier)
    }

    /// Listens for peers with a certificate of the run, over all that was bound. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn listen(&self, sockets: Sockets, identity: &Identity) -> Result<ReachListener, EndpointError> {
        let (address, options) = (sockets.address()?, self.options);
        let quic = |socket| QuicListener::new(socket, identity, options);
        let ways = sockets.0.map(quic, |socket| TlsListener::new(socket, identity, options))?;
        Ok(ReachListener { ways, address })
    }

    /// As [`Self::listen`], and lets in who has no certificate, for a token and nothing else.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn listen_with_strangers(&self, sockets: Sockets, identity: &Identity) -> Result<ReachListener, EndpointError> {
        let (address, options) = (sockets.address()?, self.options);
        let quic = |socket| QuicListener::with_strangers(socket, identity, options);
        let ways = sockets.0.map(quic, |socket| TlsListener::with_strangers(socket, identity, options))?;
        Ok(ReachListener { ways, address })
    }

    /// Will reach whoever holds the place `to` of `identity`'s run. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn dialer(&self, to: WorkerId, at: SocketAddr, identity: &Identity) -> Result<ReachDialer, EndpointError> {
        let quic = || QuicDialer::to(to, at, identity, self.options);
        let ways = self.carrier.ways(quic, || TlsDialer::to(to, at, identity, self.options))?;
        Ok(ReachDialer { ways, to, at, blocked: self.blocked.clone() })
    }

    /// Will reach `to` of `run` without a certificate of its own, trusting the authority (PEM) that a token names.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn stranger(&self, to: WorkerId, at: SocketAddr, run: RunId, authority: &str) -> Result<ReachDialer, EndpointError> {
        let quic = || QuicDialer::stranger(to, at, run, authority, self.options);
        let ways = self.carrier.ways(quic, || TlsDialer::stranger(to, at, run, authority, self.options))?;
        Ok(ReachDialer { ways, to, at, blocked: self.blocked.clone() })
    }
}

/// Addresses whose UDP does not pass, and until when that counts.
#[derive(Debug, Default)]
struct Blocked(Mutex<HashMap<IpAddr, Instant>>);

impl Blocked {
    fn holds(&self, ip: IpAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&ip).is_some_and(|&until| Instant::now() < until)
    }

    /// `true` where that is new.
    fn note(&self, ip: IpAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(ip, Instant::now() + FORGET).is_none()
    }

    /// UDP passes. `true` where it had not.
    fn clear(&self, ip: IpAddr) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&ip).is_some()
    }
}
