//! Where the learner ranks of different processes meet: a port of the lead, reached with the certificates of the run.
//! Where other hosts can join it is the third port after `cluster.listen`; a lead that listens on every interface names none,
//! and its followers find it where they find the coordinator.
use super::whereabouts::Whereabouts;
use cohort_actors::certs::Identity;
use cohort_actors::transport::reach::{Reach, Sockets};
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
    pub(super) coordinator: Arc<Whereabouts>,
    /// Where other hosts join, if they may.
    pub(super) listen: Option<SocketAddr>,
    /// Of this rank.
    pub(super) identity: Arc<Identity>,
    /// How ranks reach each other.
    pub(super) reach: Reach,
}

impl Meeting {
    /// A socket on the interface that leads to the coordinator: loopback where the run keeps to this host.
    fn sockets(&self) -> io::Result<Sockets> {
        if let Some(listen) = self.listen {
            let port = if listen.port() == 0 { 0 } else { listen.port().saturating_add(MEETING) };
            return self.reach.bind(SocketAddr::new(listen.ip(), port));
        }
        let coordinator = self.coordinator.now();
        let any = if coordinator.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let probe = UdpSocket::bind(any)?;
        // Sends nothing: it makes the system choose the way.
        probe.connect(coordinator)?;
        self.reach.bind(SocketAddr::new(probe.local_addr()?.ip(), 0))
    }
}

impl Rendezvous for Meeting {
    fn listen(&self) -> Result<(Arc<dyn Listener>, String), String> {
        let sockets = self.sockets().map_err(|e| format!("cannot bind a port for the learner's followers: {e}"))?;
        let listener = self.reach.listen(sockets, &self.identity).map_err(|e| e.to_string())?;
        let address = listener.local_addr().to_string();
        Ok((Arc::new(listener), address))
    }

    fn dialer(&self, address: &str) -> Result<Arc<dyn Dialer>, String> {
        let mut at: SocketAddr = address.parse().map_err(|e| format!("the lead's address {address:?}: {e}"))?;
        if at.ip().is_unspecified() {
            at.set_ip(self.coordinator.now().ip());
        }
        let dialer = self.reach.dialer(LEAD, at, &self.identity).map_err(|e| e.to_string())?;
        Ok(Arc::new(dialer))
    }
}
