//! Questions to the other keepers: a connection to each, kept up as long as the process lives, so that there is one when a vote is
//! needed.
//!
//! Invariants
//! - **Q1** nothing is asked of a keeper whose log is not the one that it always had.
//! - **Q2** a question is answered, or its connection ends, or its asker stops waiting; none is sent twice.
use crate::ledger::replica::{Keeper, Line, LineError};
use async_trait::async_trait;
use cohort_actors::certs::{self, Identity};
use cohort_actors::transport::reach::Reach;
use cohort_actors::{Dialer, LinkOptions, LinkSender, Shutdown, WorkerLink};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::keepers::{AppendLog, AppendOutcome, AskVote, AskerToKeeper, KeeperToAsker, VoteOutcome};
use cohort_protocol::version::REVOCATIONS;
use cohort_protocol::{Role, WorkerId};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// For a keeper to be reached, and to say whose log it has.
const REACH: Duration = Duration::from_secs(5);
/// Between two looks for hosts that were let go.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(200);

type Asked = HashMap<u64, oneshot::Sender<KeeperToAsker>>;
type Link = WorkerLink<KeeperToAsker, AskerToKeeper>;

/// The lines of this process.
#[derive(Debug)]
pub(super) struct Lines {
    peers: Vec<Peer>,
    next: AtomicU64,
}

/// Another keeper, and this one's connection to it.
#[derive(Debug, Default)]
struct Peer {
    sender: Mutex<Option<LinkSender<AskerToKeeper>>>,
    asked: Mutex<Asked>,
}

/// What connections are made with.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) reach: Reach,
    pub(super) identity: Arc<Identity>,
    pub(super) hello: Hello,
    /// Where this host's certificates are, and what it knows of those that were taken away.
    pub(super) certs: PathBuf,
    pub(super) shutdown: Shutdown,
}

/// The place of a keeper in its run.
pub(super) fn place(number: u64) -> WorkerId {
    WorkerId { role: Role::Keeper, index: u16::try_from(number).unwrap_or(u16::MAX) }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lines {
    /// To so many keepers; none is connected yet.
    pub(super) fn new(keepers: usize) -> Arc<Self> {
        Arc::new(Self { peers: (0..keepers).map(|_| Peer::default()).collect(), next: AtomicU64::new(1) })
    }

    /// Connects `keeper`, number `own`, to the others and keeps it so until the set is dropped.
    pub(super) fn connect(self: &Arc<Self>, own: u64, keeper: &Keeper, way: &Way, addresses: &[SocketAddr]) -> JoinSet<()> {
        let mut kept = JoinSet::new();
        for (to, at) in (0..).zip(addresses.iter().copied()).filter(|(to, _)| *to != own) {
            kept.spawn(self.clone().keep(to, at, keeper.clone(), way.clone()));
        }
        kept
    }

    async fn keep(self: Arc<Self>, to: u64, at: SocketAddr, keeper: Keeper, way: Way) {
        let Some(peer) = usize::try_from(to).ok().and_then(|to| self.peers.get(to)) else { return };
        let mut said = String::new();
        loop {
            match dial(to, at, &keeper, &way).await {
                Ok(link) => {
                    tracing::info!(target: "cohort::keeper", keeper = to, %at, "connected");
                    *held(&peer.sender) = Some(link.sender());
                    converse(&link, peer, &way).await;
                    *held(&peer.sender) = None;
                    // Who waits hears it by the end of the channel.
                    held(&peer.asked).clear();
                    said.clear();
                }
                Err(why) if why == said => {}
                Err(why) => {
                    tracing::warn!(target: "cohort::keeper", keeper = to, %at, why, "out_of_reach");
                    said = why;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn ask(&self, to: u64, question: impl FnOnce(u64) -> (AskerToKeeper, bool)) -> Result<KeeperToAsker, LineError> {
        let failed = |why: String| LineError { keeper: to, why };
        let peer = usize::try_from(to).ok().and_then(|to| self.peers.get(to));
        let peer = peer.ok_or_else(|| failed("there is none of that number".into()))?;
        let sender = held(&peer.sender).clone().ok_or_else(|| failed("it is not connected".into()))?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        held(&peer.asked).insert(id, answer);
        let _forget = Forget { peer, id };
        let (question, bulk) = question(id);
        let sent = if bulk { sender.send_bulk(&question).await } else { sender.send(&question).await };
        sent.map_err(|error| failed(error.to_string()))?;
        answered.await.map_err(|_| failed("its connection ended".into()))
    }
}

/// A question whose asker no longer waits is forgotten.
struct Forget<'a> {
    peer: &'a Peer,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        held(&self.peer.asked).remove(&self.id);
    }
}

impl Peer {
    fn hear(&self, answer: KeeperToAsker) {
        let id = match &answer {
            KeeperToAsker::Appended(appended) => appended.id,
            KeeperToAsker::Voted(voted) => voted.id,
            KeeperToAsker::Store(_) => return,
        };
        if let Some(asker) = held(&self.asked).remove(&id) {
            // Who asked may have stopped waiting.
            let _ = asker.send(answer);
        }
    }
}

/// Hears answers until the connection ends, and tells of hosts that were let go.
async fn converse(link: &Link, peer: &Peer, way: &Way) {
    let (mut look, mut told) = (tokio::time::interval(LOOK), BTreeSet::new());
    loop {
        tokio::select! {
            answer = link.recv() => match answer {
                Ok((answer, ack)) => {
                    ack.into_iter().for_each(cohort_actors::Ack::accept);
                    peer.hear(answer);
                }
                Err(_) => return,
            },
            _ = look.tick(), if link.protocol() >= REVOCATIONS => {
                // Of a list that cannot be read nobody is told, and this host lets nobody in.
                let now = certs::revoked(&way.certs).unwrap_or_default();
                if now != told && link.sender().send(&AskerToKeeper::Revoked(now.iter().copied().collect())).await.is_ok() {
                    told = now;
                }
            }
        }
    }
}

/// A connection on which both ends know whose log the other has (Q1).
async fn dial(to: u64, at: SocketAddr, keeper: &Keeper, way: &Way) -> Result<Link, String> {
    let Way { reach, identity, hello, shutdown, .. } = way;
    let dialer: Arc<dyn Dialer> = Arc::new(reach.dialer(place(to), at, identity).map_err(|e| e.to_string())?);
    let options = LinkOptions { give_up: Some(REACH), ..LinkOptions::default() };
    let link = Link::connect(dialer, hello.clone(), options, shutdown.clone()).await.map_err(|e| e.to_string())?;
    link.sender().send(&AskerToKeeper::Store(keeper.own_store())).await.map_err(|e| e.to_string())?;
    let answer = timeout(REACH, link.recv()).await.map_err(|_| "it did not say whose log it has".to_owned())?;
    match answer.map_err(|e| e.to_string())? {
        (KeeperToAsker::Store(store), _) if store.keeper == to => match keeper.knows(store).await {
            Ok(true) => Ok(link),
            Ok(false) => Err(format!("keeper {to} has lost its log and begun another: it has no part in this run any more")),
            Err(error) => Err(error.to_string()),
        },
        (other, _) => Err(format!("it answered {other:?} where its log was asked for")),
    }
}

#[async_trait]
impl Line for Lines {
    async fn append(&self, to: u64, question: AppendLog) -> Result<AppendOutcome, LineError> {
        let bulk = !question.entries.is_empty();
        match self.ask(to, |id| (AskerToKeeper::Append(AppendLog { id, ..question }), bulk)).await? {
            KeeperToAsker::Appended(appended) => Ok(appended.outcome),
            other => Err(LineError { keeper: to, why: format!("it answered {other:?} to entries") }),
        }
    }

    async fn vote(&self, to: u64, question: AskVote) -> Result<VoteOutcome, LineError> {
        match self.ask(to, |id| (AskerToKeeper::Vote(AskVote { id, ..question }), false)).await? {
            KeeperToAsker::Voted(voted) => Ok(voted.outcome),
            other => Err(LineError { keeper: to, why: format!("it answered {other:?} to a vote") }),
        }
    }
}
