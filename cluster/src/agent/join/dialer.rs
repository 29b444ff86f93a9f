//! Finds the head node wherever it is: carries out what [`seeking`](super::seeking) decides. A round is one try of the link above,
//! which knows patience and pauses.
use super::seeking::{Seeking, Try};
use crate::agent::head::HEAD;
use async_trait::async_trait;
use cohort_actors::certs::Identity;
use cohort_actors::transport::reach::Reach;
use cohort_actors::{Connection, Dialer, LinkOptions, Shutdown, TransportError, WorkerLink};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::seeking::{KeeperToNode, NodeToKeeper, WhoLeads};
use cohort_protocol::{Role, WorkerId};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// For a keeper to be reached and to answer.
const ASKED: Duration = Duration::from_secs(3);

/// A host's way to its head node.
#[derive(Debug)]
pub(super) struct HeadDialer {
    reach: Reach,
    identity: Identity,
    hello: Hello,
    shutdown: Shutdown,
    seeking: Mutex<Seeking>,
    asked: AtomicU64,
}

impl HeadDialer {
    pub(super) fn new(reach: Reach, identity: Identity, hello: Hello, shutdown: Shutdown, seeking: Seeking) -> Self {
        Self { reach, identity, hello, shutdown, seeking: Mutex::new(seeking), asked: AtomicU64::new(1) }
    }

    fn seeking(&self) -> MutexGuard<'_, Seeking> {
        self.seeking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the head node is.
    pub(super) fn head(&self) -> SocketAddr {
        self.seeking().head()
    }

    /// The run is kept by these.
    pub(super) fn kept_by(&self, keepers: Vec<SocketAddr>) {
        self.seeking().kept_by(keepers);
    }

    async fn dial(&self, at: SocketAddr) -> Result<Arc<dyn Connection>, TransportError> {
        let dialer = self.reach.dialer(HEAD, at, &self.identity);
        let dialer = dialer.map_err(|error| TransportError::Lost { peer: format!("{HEAD} at {at}"), why: error.to_string() })?;
        dialer.connect().await
    }

    async fn ask(&self, number: usize, at: SocketAddr) -> Result<WhoLeads, String> {
        let place = WorkerId { role: Role::Keeper, index: u16::try_from(number).unwrap_or(u16::MAX) };
        let dialer: Arc<dyn Dialer> = Arc::new(self.reach.dialer(place, at, &self.identity).map_err(|e| e.to_string())?);
        let options = LinkOptions { give_up: Some(Duration::ZERO), insists: false, ..LinkOptions::default() };
        let asking = async {
            let link: WorkerLink<KeeperToNode, NodeToKeeper> =
                WorkerLink::connect(dialer, self.hello.clone(), options, self.shutdown.clone())
                    .await
                    .map_err(|e| e.to_string())?;
            let id = self.asked.fetch_add(1, Ordering::Relaxed);
            link.sender().send(&NodeToKeeper::WhoLeads(id)).await.map_err(|e| e.to_string())?;
            match link.recv().await.map_err(|e| e.to_string())?.0 {
                KeeperToNode::Leads(said) if said.id == id => Ok(said),
                KeeperToNode::Leads(other) => Err(format!("it answered question {} where {id} was asked", other.id)),
            }
        };
        let answer = timeout(ASKED, asking).await;
        answer.unwrap_or_else(|_| Err(format!("{place} at {at} did not say who leads within {ASKED:?}")))
    }
}

#[async_trait]
impl Dialer for HeadDialer {
    fn address(&self) -> String {
        format!("{HEAD} at {}", self.head())
    }

    /// A round over every address there is.
    async fn connect(&self) -> Result<Arc<dyn Connection>, TransportError> {
        self.seeking().begin();
        let mut last = None;
        loop {
            let Some(next) = self.seeking().next() else { break };
            match next {
                Try::Head(at) => match self.dial(at).await {
                    Ok(connection) => {
                        self.seeking().reached();
                        return Ok(connection);
                    }
                    Err(error) => {
                        self.seeking().failed(next);
                        last = Some(error);
                    }
                },
                Try::Ask(number, at) => match self.ask(number, at).await {
                    Ok(said) => {
                        tracing::debug!(target: "cohort::agent", ?said, "keeper_answered");
                        self.seeking().heard(&said);
                    }
                    Err(why) => {
                        tracing::debug!(target: "cohort::agent", keeper = number, %at, why, "keeper_not_asked");
                        self.seeking().failed(next);
                    }
                },
            }
        }
        let nobody = || TransportError::Lost { peer: self.address(), why: "no keeper of the run knows who leads".into() };
        Err(last.unwrap_or_else(nobody))
    }
}
