//! Where the coordinator is, for a worker's process. On the head node that never changes. A host that joined outlives its head node,
//! and so do its workers: the next coordinator is at another address, which the host's agent leaves in a file that they read before
//! every try.
use crate::ledger::place::write_atomically;
use crate::ledger::{LedgerError, RunPaths};
use async_trait::async_trait;
use cohort_actors::certs::Identity;
use cohort_actors::transport::reach::{Reach, ReachDialer};
use cohort_actors::{Connection, Dialer, TransportError};
use cohort_protocol::{Role, WorkerId};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two looks while a coordinator is dialled that may have gone for good.
const LOOK: Duration = Duration::from_millis(200);
const COORDINATOR: WorkerId = WorkerId { role: Role::Coordinator, index: 0 };

/// A coordinator's address, for as long as a process lives.
#[derive(Debug)]
pub(super) struct Whereabouts {
    first: SocketAddr,
    file: Option<PathBuf>,
}

impl Whereabouts {
    /// It stays where it is.
    pub(super) fn fixed(at: SocketAddr) -> Self {
        Self { first: at, file: None }
    }

    /// It is where the host's agent says, and before it has said anything, `first`.
    pub(super) fn said_in(paths: &RunPaths, first: SocketAddr) -> Self {
        Self { first, file: Some(paths.coordinator()) }
    }

    /// Returns when it is no longer there.
    async fn moves_from(&self, at: SocketAddr) {
        if self.file.is_none() {
            std::future::pending::<()>().await;
        }
        while self.now() == at {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Where it is now.
    pub(super) fn now(&self) -> SocketAddr {
        let said = self.file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        said.and_then(|text| text.trim().parse().ok()).unwrap_or(self.first)
    }
}

/// Says it to the workers of this host.
pub(super) fn say(paths: &RunPaths, at: SocketAddr) -> Result<(), LedgerError> {
    write_atomically(&paths.coordinator(), at.to_string().as_bytes())
}

/// Reaches the coordinator wherever it is.
#[derive(Debug)]
pub(super) struct CoordinatorDialer {
    place: Arc<Whereabouts>,
    reach: Reach,
    identity: Arc<Identity>,
    /// For the address that was dialled last.
    last: Mutex<Option<(SocketAddr, Arc<ReachDialer>)>>,
}

impl CoordinatorDialer {
    pub(super) fn new(place: Arc<Whereabouts>, reach: Reach, identity: Arc<Identity>) -> Self {
        Self { place, reach, identity, last: Mutex::new(None) }
    }

    fn dialer(&self, at: SocketAddr) -> Result<Arc<ReachDialer>, TransportError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, dialer)) = last.as_ref()
            && *before == at
        {
            return Ok(dialer.clone());
        }
        let made = self.reach.dialer(COORDINATOR, at, &self.identity);
        let dialer = Arc::new(made.map_err(|error| lost(at, error.to_string()))?);
        *last = Some((at, dialer.clone()));
        Ok(dialer)
    }
}

fn lost(at: SocketAddr, why: String) -> TransportError {
    TransportError::Lost { peer: format!("{COORDINATOR} at {at}"), why }
}

#[async_trait]
impl Dialer for CoordinatorDialer {
    fn address(&self) -> String {
        format!("coordinator at {}", self.place.now())
    }

    async fn connect(&self) -> Result<Arc<dyn Connection>, TransportError> {
        let at = self.place.now();
        let dialer = self.dialer(at)?;
        tokio::select! {
            connected = dialer.connect() => connected,
            () = self.place.moves_from(at) => Err(lost(at, "the run's coordinator is elsewhere now".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_goes_where_its_agent_says_last() {
        let folder = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(folder.path());
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let told = Whereabouts::said_in(&paths, at(1));
        assert_eq!(told.now(), at(1), "nothing was said yet");
        for port in [2, 3] {
            say(&paths, at(port)).unwrap();
            assert_eq!(told.now(), at(port));
        }
        std::fs::write(paths.coordinator(), "nowhere").unwrap();
        assert_eq!(told.now(), at(1));
        assert_eq!(Whereabouts::fixed(at(9)).now(), at(9), "on the head node nobody says anything");
    }
}
