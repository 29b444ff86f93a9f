//! Carries out what [`state`](super::state) decides about other hosts: sessions in and out, hashing, certificates.
use super::enrolment::Enrolment;
use super::event::{Command, ConnId, Event};
use super::state::HostsState;
use crate::agent::weights::manifest::{self, CHUNK};
use crate::agent::weights::shelf::Shelf;
use crate::progress::{Progress, ProgressSink};
use cohort_actors::certs::{CertError, RunAuthority};
use cohort_actors::{AcceptTerms, Connection, Listener, PeerLink, accept_node};
use cohort_engine::SharedRing;
use cohort_protocol::messages::node::{ChildState, ChunkHashes, HeadToNode, Manifest, NodeToHead, RunFacts};
use cohort_protocol::{Epoch, PolicyVersion, Role, RunId, WorkerId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Messages that wait for the one task that decides.
const INBOX: usize = 1024;
/// Messages that wait for a host; one that reads none of them is cut off.
const OUTBOX: usize = 4096;
/// For a host's first word.
const HELLO: Duration = Duration::from_secs(5);
/// For hosts to leave when the run is over.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is needed to look after hosts.
pub(crate) struct HostsArgs {
    pub(crate) run: RunId,
    pub(crate) authority: Arc<RunAuthority>,
    pub(crate) enrolment: Arc<Enrolment>,
    pub(crate) ring: Arc<SharedRing>,
    pub(crate) shelf: Arc<Shelf>,
    /// Workers that the head node itself offers to run.
    pub(crate) offers: Vec<(Role, u16)>,
    /// Learner ranks besides the lead.
    pub(crate) followers: u16,
    /// What hosts are told of the run.
    pub(crate) facts: RunFacts,
    /// Where hosts come in; none: the run keeps to this host.
    pub(crate) listener: Option<Arc<dyn Listener>>,
    pub(crate) progress: Arc<dyn ProgressSink>,
}

/// Processes of another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub(crate) host: WorkerId,
    pub(crate) connected: bool,
    pub(crate) children: Vec<ChildState>,
}

/// The running task's handle.
pub(crate) struct Hosts {
    inbox: mpsc::Sender<Input>,
    /// The workers that the head node is to run.
    pub(crate) here: watch::Receiver<Vec<WorkerId>>,
    /// Processes of other hosts.
    pub(crate) elsewhere: watch::Receiver<Vec<Elsewhere>>,
    /// Rollout workers of the run, all hosts together.
    pub(crate) rollouts: watch::Receiver<u16>,
    /// Roles that have no worker anywhere.
    pub(crate) lacking: watch::Receiver<Vec<Role>>,
    /// Workers of the head node to kill, and why.
    pub(crate) kills: mpsc::Receiver<(WorkerId, u32, String)>,
}

/// For whoever asks the task for something.
#[derive(Clone)]
pub(crate) struct HostsSender(mpsc::Sender<Input>);

#[derive(Debug)]
enum Input {
    Event(Event),
    /// A host was welcomed.
    Opened {
        event: Event,
        conn: ConnId,
        outbox: Outbox,
    },
    Scale {
        role: Role,
        count: u16,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Dismiss {
        host: u16,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Renew {
        reply: oneshot::Sender<Result<usize, String>>,
    },
    Farewell {
        reason: String,
        reply: oneshot::Sender<()>,
    },
}

#[derive(Debug)]
struct Outbox {
    queue: mpsc::Sender<HeadToNode>,
    close: mpsc::Sender<String>,
}

impl Hosts {
    /// A handle for requests.
    pub(crate) fn sender(&self) -> HostsSender {
        HostsSender(self.inbox.clone())
    }

    /// A worker hangs, wherever it is.
    pub(crate) async fn hangs(&self, worker: WorkerId, pid: u32, why: String) {
        // The task ends with its last handle, which is here.
        let _ = self.inbox.send(Input::Event(Event::Hangs { worker, pid, why })).await;
    }

    /// The run is over: hosts stop their workers and leave.
    pub(crate) async fn farewell(&self, reason: &str) {
        let (reply, done) = oneshot::channel();
        if self.inbox.send(Input::Farewell { reason: reason.to_owned(), reply }).await.is_ok() {
            // Hosts that do not leave find nobody any more, and leave then.
            let _ = tokio::time::timeout(FAREWELL, done).await;
        }
    }
}

impl HostsSender {
    /// So many workers of a role from now on.
    pub(crate) async fn scale(&self, role: Role, count: u16) -> Result<(), String> {
        self.ask(|reply| Input::Scale { role, count, reply }).await
    }

    /// Lets a host go.
    pub(crate) async fn dismiss(&self, host: u16) -> Result<(), String> {
        self.ask(|reply| Input::Dismiss { host, reply }).await
    }

    /// Has every host take new certificates; how many were told.
    pub(crate) async fn renew(&self) -> Result<usize, String> {
        self.ask(|reply| Input::Renew { reply }).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Input) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the run is ending".to_owned();
        self.0.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Starts to look after hosts. Ends with the last handle.
pub(crate) fn start(args: HostsArgs) -> Hosts {
    let (inbox, inputs) = mpsc::channel(INBOX);
    let (here_tx, here) = watch::channel(Vec::new());
    let (elsewhere_tx, elsewhere) = watch::channel(Vec::new());
    let (kill, kills) = mpsc::channel(64);
    let (mut state, mut first) = (HostsState::default(), Vec::new());
    state.begin(args.offers.iter().copied(), args.followers, args.facts.clone(), &mut first);
    let (rollouts_tx, rollouts) = watch::channel(state.count(Role::Rollout));
    let (lacking_tx, lacking) = watch::channel(state.lacking());
    let told = Told { here: here_tx, elsewhere: elsewhere_tx, rollouts: rollouts_tx, lacking: lacking_tx, kill };
    let mut accepting = JoinSet::new();
    if let Some(listener) = args.listener.clone() {
        accepting.spawn(accept_all(listener, args.run, args.enrolment.clone(), inbox.clone()));
    }
    // Weak: the task's own sender must not keep it alive.
    let own = inbox.downgrade();
    let task = Task { args, state, told, own, outboxes: HashMap::new(), _accepting: accepting };
    tokio::spawn(task.run(inputs, first));
    Hosts { inbox, here, elsewhere, rollouts, lacking, kills }
}

/// Those who are told what was decided.
struct Told {
    here: watch::Sender<Vec<WorkerId>>,
    elsewhere: watch::Sender<Vec<Elsewhere>>,
    rollouts: watch::Sender<u16>,
    lacking: watch::Sender<Vec<Role>>,
    kill: mpsc::Sender<(WorkerId, u32, String)>,
}

struct Task {
    args: HostsArgs,
    state: HostsState,
    told: Told,
    own: mpsc::WeakSender<Input>,
    outboxes: HashMap<ConnId, Outbox>,
    _accepting: JoinSet<()>,
}

impl Task {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>, first: Vec<Command>) {
        self.carry_out(first).await;
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut leaving: Option<oneshot::Sender<()>> = None;
        loop {
            let mut commands = Vec::new();
            tokio::select! {
                input = inputs.recv() => match input {
                    None => return,
                    Some(Input::Event(event)) => self.on_event(event, &mut commands),
                    Some(Input::Opened { event, conn, outbox }) => {
                        self.outboxes.insert(conn, outbox);
                        self.on_event(event, &mut commands);
                    }
                    Some(Input::Scale { role, count, reply }) => {
                        // Who asked may have hung up.
                        let _ = reply.send(self.state.scale(role, count, &mut commands));
                    }
                    Some(Input::Dismiss { host, reply }) => {
                        let dismissed = self.state.dismiss(host, &mut commands);
                        let dismissed = dismissed.and_then(|()| self.args.enrolment.dismiss(host));
                        self.look_for_dismissed(&mut commands);
                        // As above.
                        let _ = reply.send(dismissed);
                    }
                    Some(Input::Renew { reply }) => {
                        // As above.
                        let _ = reply.send(Ok(self.state.renew(&mut commands)));
                    }
                    Some(Input::Farewell { reason, reply }) => {
                        let message = |conn| Command::Tell { conn, message: HeadToNode::Leave(reason.clone()) };
                        commands.extend(self.state.connections().into_iter().map(message));
                        leaving = Some(reply);
                    }
                },
                _ = tick.tick() => {
                    self.look_for_dismissed(&mut commands);
                    self.on_event(Event::Tick, &mut commands);
                }
            }
            self.carry_out(commands).await;
            self.tell();
            if self.outboxes.is_empty()
                && let Some(reply) = leaving.take()
            {
                // Who waits may have run out of patience.
                let _ = reply.send(());
            }
        }
    }

    fn on_event(&mut self, event: Event, out: &mut Vec<Command>) {
        if let Event::Closed { conn, .. } = &event {
            self.outboxes.remove(conn);
        }
        self.state.on_event(Instant::now(), event, out);
    }

    /// Where several hosts keep the run, another keeper's head node may have let a host go.
    fn look_for_dismissed(&mut self, out: &mut Vec<Command>) {
        match self.args.enrolment.dismissed() {
            Ok(hosts) => self.on_event(Event::Revoked(hosts), out),
            // No door opens to anybody meanwhile.
            Err(why) => tracing::error!(target: "cohort::agent", why, "revocations_not_read"),
        }
    }

    fn tell(&self) {
        let now =
            self.state.children().map(|(host, connected, children)| Elsewhere { host, connected, children: children.to_vec() });
        let now: Vec<Elsewhere> = now.collect();
        self.told.elsewhere.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        let rollouts = self.state.count(Role::Rollout);
        self.told.rollouts.send_if_modified(|before| std::mem::replace(before, rollouts) != rollouts);
        self.told.lacking.send_replace(self.state.lacking());
    }

    async fn carry_out(&mut self, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Tell { conn, message } => {
                    let full = self.outboxes.get(&conn).is_some_and(|outbox| outbox.queue.try_send(message).is_err());
                    if full {
                        self.close(conn, "it does not read its messages");
                    }
                }
                Command::Close { conn, why } => self.close(conn, &why),
                Command::Here(workers) => {
                    self.told.here.send_replace(workers);
                }
                Command::Hash { version, slot } => self.hash(version, slot),
                Command::Certify { host, worker, public_key } => match self.certify(host, worker, &public_key) {
                    Ok(der) => self.later(Event::Certified { host, worker, der }),
                    Err(error) => self.notice(format!("node-{host} gets no certificate for {worker}: {error}")),
                },
                Command::Kill { worker, pid, why } => {
                    // Full: it has been said before.
                    let _ = self.told.kill.try_send((worker, pid, why));
                }
                Command::Notice(text) => self.notice(text),
            }
        }
    }

    fn certify(&self, host: u16, worker: WorkerId, public_key: &[u8]) -> Result<Vec<u8>, CertError> {
        match worker.role {
            Role::Node => self.args.authority.certify(worker, public_key),
            _ => self.args.authority.certify_for(worker, host, public_key),
        }
    }

    fn close(&mut self, conn: ConnId, why: &str) {
        if let Some(outbox) = self.outboxes.get(&conn) {
            // Full: it has been told to close.
            let _ = outbox.close.try_send(why.to_owned());
        }
    }

    fn notice(&self, text: String) {
        tracing::info!(target: "cohort::agent", text, "hosts");
        self.args.progress.emit(Progress::Notice(text));
    }

    /// The queue's reader is this task: it must not wait for room.
    fn later(&self, event: Event) {
        let Some(own) = self.own.upgrade() else { return };
        tokio::spawn(async move {
            // A task that has ended needs no events.
            let _ = own.send(Input::Event(event)).await;
        });
    }

    fn hash(&self, version: PolicyVersion, slot: u32) {
        let Some(own) = self.own.upgrade() else { return };
        let (ring, shelf) = (self.args.ring.clone(), self.args.shelf.clone());
        tokio::task::spawn_blocking(move || {
            // A task that has ended needs no events.
            let tell = |event| drop(own.blocking_send(Input::Event(event)));
            let result = hash(&ring, &shelf, slot, version, &tell);
            tell(Event::Hashed { version, result });
        });
    }
}

/// Hashes a slot and tells of each part when other hosts can ask for its chunks.
fn hash(
    ring: &SharedRing,
    shelf: &Shelf,
    slot: u32,
    version: PolicyVersion,
    tell: &(impl Fn(Event) + Sync),
) -> Result<Manifest, String> {
    let manifest = manifest::unhashed(ring, slot, version, CHUNK)?;
    shelf.put(slot, Arc::new(manifest.clone()));
    tell(Event::Announced(manifest.clone()));
    manifest::hash_in_parts(ring, slot, &manifest, &|first, hashes| {
        shelf.learn(version, first, &hashes);
        tell(Event::HashedInPart(ChunkHashes { version, first, hashes }));
    })?;
    shelf.manifest(version).ok_or_else(|| format!("slot {slot} was written anew"))
}

/// Lets hosts in, each in a task of its own, until it is aborted.
async fn accept_all(listener: Arc<dyn Listener>, run: RunId, enrolment: Arc<Enrolment>, inbox: mpsc::Sender<Input>) {
    let terms = AcceptTerms {
        run,
        epoch: Epoch(0),
        numerics: String::new(),
        corrects: false,
        deadline: HELLO,
        roles: AcceptTerms::NODES,
    };
    let terms = Arc::new(terms);
    let mut sessions = JoinSet::new();
    let mut next = 0;
    while let Ok(connection) = listener.accept().await {
        while sessions.try_join_next().is_some() {}
        next += 1;
        sessions.spawn(welcome(ConnId(next), connection, terms.clone(), enrolment.clone(), inbox.clone()));
    }
}

async fn welcome(
    conn: ConnId,
    connection: Arc<dyn Connection>,
    terms: Arc<AcceptTerms>,
    enrolment: Arc<Enrolment>,
    inbox: mpsc::Sender<Input>,
) {
    let admitted = accept_node(connection, &terms, |_| Ok(()), |request| enrolment.enrol(request)).await;
    let link: PeerLink<NodeToHead, HeadToNode> = match admitted {
        Ok(Some(admitted)) => admitted.into_link(),
        Ok(None) => return,
        Err(error) => return tracing::warn!(target: "cohort::agent", %error, "host_not_welcomed"),
    };
    let (queue, mut queued) = mpsc::channel(OUTBOX);
    let (close, mut closing) = mpsc::channel(1);
    let (host, ip) = (link.hello().worker.index, link.remote().map(|address| address.ip()));
    let event = Event::Opened { conn, host, ip, protocol: link.protocol() };
    let opened = Input::Opened { event, conn, outbox: Outbox { queue, close } };
    if inbox.send(opened).await.is_err() {
        return;
    }
    let sender = link.sender();
    let why = loop {
        tokio::select! {
            Some(message) = queued.recv() => {
                if let Err(error) = sender.send(&message).await {
                    break error.to_string();
                }
            }
            Some(why) = closing.recv() => {
                link.close(&why);
                break why;
            }
            heard = link.recv() => match heard {
                Ok((message, _)) => {
                    if inbox.send(Input::Event(Event::Said { conn, message })).await.is_err() {
                        return;
                    }
                }
                Err(error) => break error.to_string(),
            },
        }
    };
    // A task that has ended needs no news.
    let _ = inbox.send(Input::Event(Event::Closed { conn, why })).await;
}
