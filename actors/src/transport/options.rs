//! Limits and times of a transport between processes, and why an endpoint cannot be made.
use super::Deadlines;
use cohort_protocol::{WorkerId, limits};
use std::io;
use std::time::Duration;
use thiserror::Error;

/// Limits and times. The defaults detect a silent peer in 3 s and bound a connection's unread bytes by 70 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportOptions {
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

impl Default for TransportOptions {
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

impl TransportOptions {
    /// Refuses what no transport can keep.
    pub(super) fn check(&self) -> Result<(), EndpointError> {
        if self.bulk_budget < limits::MAX_BULK_BODY + 1024 {
            let why = "it must hold one bulk frame of the largest size";
            return Err(EndpointError::Option { name: "bulk_budget", value: self.bulk_budget.to_string(), why });
        }
        Ok(())
    }
}

/// An endpoint could not be made.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The certificates do not fit together.
    #[error("TLS for {who}: {why}; issue the certificates of the run anew")]
    Tls {
        /// Whose.
        who: WorkerId,
        /// Why.
        why: String,
    },
    /// The socket.
    #[error("{kind} socket {address}: {source}")]
    Socket {
        /// `UDP` or `TCP`.
        kind: &'static str,
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
