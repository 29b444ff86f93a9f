//! Where the learner ranks of different processes meet: a QUIC endpoint of the lead, reached with the certificates of the run.
//! Where other hosts can join it is the third port after `cluster.listen`; a lead that listens on every interface names none,
//! and its followers find it where they find the coordinator.
use cohort_actors::certs::Identity;
use cohort_actors::transport::quic::{QuicDialer, QuicListener, QuicOptions};
use cohort_actors::{Dialer, Listener};
use cohort_learner::Rendezvous;
use cohort_protocol::{Role, WorkerId};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

/// The meeting's port after that of `cluster.listen`.
const MEETING: u16 = 3;
const LEAD: WorkerId = WorkerId { role: Role::Learner, index: 0 };

/// Of one process.
#[derive(Debug)]
pub(super) struct Meeting {
    /// The coordinator of the run: who reaches it reaches the lead over the same interface.
    pub(super) coordinator: SocketAddr,
    /// Where other hosts join, if they may.
    pub(super) listen: Option<SocketAddr>,
    /// Of this rank.
    pub(super) identity: Identity,
}

impl Meeting {
    /// A socket on the interface that leads to the coordinator: loopback where the run keeps to this host.
    fn socket(&self) -> io::Result<UdpSocket> {
        if let Some(listen) = self.listen {
            let port = if listen.port() == 0 { 0 } else { listen.port().saturating_add(MEETING) };
            return UdpSocket::bind((listen.ip(), port));
        }
        let any = if self.coordinator.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let probe = UdpSocket::bind(any)?;
        // Sends nothing: it makes the system choose the way.
        probe.connect(self.coordinator)?;
        UdpSocket::bind((probe.local_addr()?.ip(), 0))
    }
}

impl Rendezvous for Meeting {
    fn listen(&self) -> Result<(Arc<dyn Listener>, String), String> {
        let socket = self.socket().map_err(|e| format!("cannot bind a port for the learner's followers: {e}"))?;
        let listener = QuicListener::new(socket, &self.identity, QuicOptions::default()).map_err(|e| e.to_string())?;
        let address = listener.local_addr().to_string();
        Ok((Arc::new(listener), address))
    }

    fn dialer(&self, address: &str) -> Result<Arc<dyn Dialer>, String> {
        let mut at: SocketAddr = address.parse().map_err(|e| format!("the lead's address {address:?}: {e}"))?;
        if at.ip().is_unspecified() {
            at.set_ip(self.coordinator.ip());
        }
        let dialer = QuicDialer::to(LEAD, at, &self.identity, QuicOptions::default()).map_err(|e| e.to_string())?;
        Ok(Arc::new(dialer))
    }
}
