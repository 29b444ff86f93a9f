//! The agent of a host that joined a run: takes a place with a token, runs the workers that it is assigned, keeps their
//! weights.
//!
//! ```text
//! token ──► certificate ──► session with the head node ──► facts of the run ──► workers
//!                                    ▲      │ manifests, chunks to take
//!                                    └──────┘ what it holds, what its processes do
//! ```
//!
//! Invariants
//! - **J1** the token is shown once: with the certificate that it gave, a restarted agent comes back as the same host.
//! - **J2** while the head node is out of reach the workers go on; they have connections of their own to the coordinator.
//! - **J3** when the head node says so, or cannot be found for five minutes, every worker is stopped and the agent leaves.
//! - **J4** where several hosts keep the run, one whose head node is gone asks them who leads, and goes there; its workers follow.
//! - **J5** a host whose certificate is refused when it joins leaves at once, with the remedy; one that is refused later seeks on.
//!
//! Files: `seeking` where the head node is looked for (pure), `dialer` carries that out; `places` which workers run here, and their
//! certificates; `chunks` their weights.
mod chunks;
mod dialer;
mod places;
mod seeking;
#[cfg(test)]
mod tests;

use self::chunks::Taken;
use self::dialer::HeadDialer;
use self::seeking::Seeking;
use super::children::{self, Children};
use super::doors::node_terms;
use super::handover;
use super::join_error::{JoinError, system};
use super::membership::Membership;
use super::nodes::tokens::Token;
use super::weights::gate::{self, Call};
use super::weights::{holder, shelf::Shelf, store::Store, taker::Taker};
use super::whereabouts;
use crate::config::Config;
use crate::devices::Assignment;
use crate::http::{self, HttpOptions, Pulse};
use crate::ledger::{RunLock, RunPaths};
use crate::run::sampler::SampleWith;
use cohort_actors::certs::{self, Identity, SigningKey};
use cohort_actors::supervision::process::ProcessSupervisor;
use cohort_actors::transport::reach::{Reach, ReachListener};
use cohort_actors::{ChildId, Escalation, LinkError, LinkOptions, LinkSender, Shutdown, SupervisionPolicy, WorkerLink};
use cohort_engine::SharedRing;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::node::{CertificateRequest, HeadToNode, NodeReady, NodeToHead, RunFacts};
use cohort_protocol::version::{PROTOCOL, PROTOCOL_MIN};
use cohort_protocol::{Role, RunId, WorkerId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Chunks on their way, taken and not yet written.
const TAKING: usize = 64;
/// For the farewell to reach the head node.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a host joins.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Where the head node listens.
    pub head: SocketAddr,
    /// The token; needed the first time only.
    pub(crate) token: Option<Token>,
    /// The host's own directory: certificates, configuration, logs.
    pub dir: PathBuf,
    /// Workers that it offers to run.
    pub offers: Vec<(Role, u16)>,
    /// What its rollout workers compute with, where that is not the run's.
    pub sample_with: Option<SampleWith>,
    /// Devices that its workers compute on; none: those that it may use.
    pub devices: Vec<String>,
    /// The host's name, for people.
    pub host: String,
    /// Where health and metrics are served.
    pub(crate) http: Option<HttpOptions>,
}

/// Joins and stays until the run is over (`Ok`), `shutdown`, or a failure.
///
/// # Errors
/// [`JoinError`].
pub async fn run(options: JoinOptions, shutdown: Shutdown) -> Result<(), JoinError> {
    std::fs::create_dir_all(&options.dir).map_err(system("make the host's directory"))?;
    let dir = options.dir.canonicalize().map_err(system("find the host's directory"))?;
    let options = JoinOptions { dir, ..options };
    let paths = RunPaths::new(&options.dir);
    let _lock = RunLock::take(&paths.launch_lock(), Duration::ZERO)?;
    // The configuration is not known yet: whatever gets through.
    let reach = Reach::default();
    let membership = Membership::take(&options, &paths, &reach).await?;
    let (run, node) = (RunId(membership.run), membership.node);
    let seeking = Seeking::new(options.head, membership.keepers.clone());
    let load = || Identity::load(&children::certificates(&paths), run, node);
    let hello = Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL,
        run,
        worker: node,
        pid: std::process::id(),
        incarnation: 0,
        numerics: String::new(),
    };
    let weights = reach.bind(SocketAddr::new(beside(options.head.ip()), 0)).map_err(system("bind a port for weights"))?;
    let weights_port = weights.local_addr().map_err(system("read the weights' port"))?.port();
    let weights = reach.listen(weights, &load()?)?;
    let dialer = Arc::new(HeadDialer::new(reach.clone(), load()?, hello.clone(), shutdown.clone(), seeking));
    let link: WorkerLink<HeadToNode, NodeToHead> = WorkerLink::connect(
        dialer.clone(),
        hello.clone(),
        LinkOptions { insists: false, ..LinkOptions::default() },
        shutdown.clone(),
    )
    .await?;
    tracing::info!(target: "cohort::agent", %node, head = %dialer.head(), "joined");

    let stop = Shutdown::new();
    let (supervisor, mut ended) =
        ProcessSupervisor::start(SupervisionPolicy::default(), run.0 ^ u64::from(node.index), stop.clone());
    let taker = Arc::new(Taker::new(reach, load()?, hello, stop.clone()));
    let mut joined = Joined::new(&options, paths.clone(), (membership, dialer), &link, weights_port, supervisor, taker)?;
    joined.weights_listener = Some(weights);
    let serving = match &options.http {
        Some(given) => {
            let (connected, pulse) = (joined.connected.clone(), joined.pulse.clone());
            let ready =
                move || if connected.load(Ordering::Relaxed) { Ok(()) } else { Err("the head node is out of reach".into()) };
            let served = http::serve(given, paths, pulse, Box::new(ready)).await;
            Some(served.map_err(system("serve --http"))?.1)
        }
        None => None,
    };
    let outcome = joined.stay(link, &mut ended).await;
    stop.trigger("this host leaves");
    // It ends when every worker has ended or was killed; it has already where it was what ended the stay.
    if !ended.is_finished() {
        let _ = ended.await;
    }
    serving.inspect(JoinHandle::abort);
    outcome
}

/// An address to listen on that whoever listens at `head` can reach, and, for a head node on this host, nobody else.
fn beside(head: IpAddr) -> IpAddr {
    match (head.is_loopback(), head.is_ipv4()) {
        (true, _) => head,
        (false, true) => Ipv4Addr::UNSPECIFIED.into(),
        (false, false) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// What the agent holds.
struct Joined<'a> {
    options: &'a JoinOptions,
    paths: RunPaths,
    run: RunId,
    membership: Membership,
    dialer: Arc<HeadDialer>,
    sender: LinkSender<NodeToHead>,
    weights_port: u16,
    weights_listener: Option<ReachListener>,
    supervisor: ProcessSupervisor,
    taker: Arc<Taker>,
    /// Made when the run's facts are known.
    site: Option<Site>,
    /// Sites so far.
    sites: u32,
    /// Workers that run here.
    workers: BTreeSet<WorkerId>,
    /// Keys of workers whose certificates are on their way.
    keys: HashMap<WorkerId, SigningKey>,
    authority: String,
    calls: (mpsc::Sender<Call>, mpsc::Receiver<Call>),
    taken: (mpsc::Sender<Taken>, mpsc::Receiver<Taken>),
    chunks: u64,
    /// Whether the head node is in reach.
    connected: Arc<AtomicBool>,
    pulse: Arc<Pulse>,
}

/// The ring and what serves it.
struct Site {
    facts: RunFacts,
    children: Children,
    store: Store,
    serving: Vec<JoinHandle<()>>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

/// Why the agent's loop ends.
enum End {
    /// The run is over, or the host was sent away.
    Left(String),
}

impl<'a> Joined<'a> {
    fn new(
        options: &'a JoinOptions,
        paths: RunPaths,
        (membership, dialer): (Membership, Arc<HeadDialer>),
        link: &WorkerLink<HeadToNode, NodeToHead>,
        weights_port: u16,
        supervisor: ProcessSupervisor,
        taker: Arc<Taker>,
    ) -> Result<Self, JoinError> {
        let authority = std::fs::read_to_string(children::certificates(&paths).join("ca.pem")).map_err(system("read ca.pem"))?;
        Ok(Self {
            options,
            paths,
            run: RunId(membership.run),
            membership,
            dialer,
            sender: link.sender(),
            weights_port,
            weights_listener: None,
            supervisor,
            taker,
            site: None,
            sites: 0,
            workers: BTreeSet::new(),
            keys: HashMap::new(),
            authority,
            calls: mpsc::channel(256),
            taken: mpsc::channel(TAKING),
            chunks: 0,
            connected: Arc::new(AtomicBool::new(true)),
            pulse: Pulse::new(),
        })
    }

    /// Until the run is over, the agent is told to leave, or its workers cannot be kept alive.
    async fn stay(
        &mut self,
        mut link: WorkerLink<HeadToNode, NodeToHead>,
        ended: &mut JoinHandle<Result<(), Escalation>>,
    ) -> Result<(), JoinError> {
        let mut status = self.supervisor.watch();
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        self.greet().await;
        loop {
            tokio::select! {
                message = link.recv() => match message {
                    Ok((message, _)) => if let Some(End::Left(reason)) = self.hear(message).await? {
                        tracing::info!(target: "cohort::agent", reason, "leaving");
                        self.say(NodeToHead::Leaving(reason)).await;
                        // The head node ends the session when it has heard.
                        let _ = tokio::time::timeout(FAREWELL, async { while link.recv().await.is_ok() {} }).await;
                        return Ok(());
                    },
                    Err(error) if error.is_lost() => {
                        tracing::warn!(target: "cohort::agent", %error, "head_node_out_of_reach");
                        // J2, J3.
                        self.connected.store(false, Ordering::Relaxed);
                        link.reconnect().await?;
                        tracing::info!(target: "cohort::agent", head = %self.dialer.head(), "head_node_in_reach");
                        self.connected.store(true, Ordering::Relaxed);
                        self.greet().await;
                    }
                    Err(LinkError::Shutdown { reason }) => {
                        self.say(NodeToHead::Leaving(reason)).await;
                        tokio::time::sleep(FAREWELL).await;
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                },
                escalated = &mut *ended => {
                    let Ok(Err(escalation)) = escalated else { return Ok(()) };
                    self.say(NodeToHead::Leaving(escalation.to_string())).await;
                    tokio::time::sleep(FAREWELL).await;
                    let exit = children::final_exit(&escalation, &self.supervisor.status());
                    return Err(JoinError::GaveUp { escalation, exit });
                }
                Ok(()) = status.changed() => {
                    let now = status.borrow_and_update().clone();
                    // For people on this host; what matters goes to the head node.
                    let _ = children::write_status(&self.paths, &now, &[], |name| self.site.as_ref()?.children.device(name));
                    self.say(NodeToHead::Children(now.iter().map(children::state_of).collect())).await;
                }
                Some(call) = self.calls.1.recv() => self.called(call).await,
                Some(taken) = self.taken.1.recv() => self.landed(taken).await,
                _ = beat.tick() => {
                    self.pulse.beat();
                    self.say(NodeToHead::Beat(self.chunks)).await;
                }
            }
        }
    }

    /// What does not arrive is said again after the next connection.
    async fn say(&self, message: NodeToHead) {
        if let Err(error) = self.sender.send(&message).await {
            tracing::debug!(target: "cohort::agent", %error, "message_lost");
        }
    }

    async fn greet(&mut self) {
        let held = self.site.as_ref().and_then(|site| site.store.newest());
        let ready = NodeReady { offers: self.options.offers.clone(), weights_port: self.weights_port, held };
        self.say(NodeToHead::Ready(ready)).await;
        let now = self.supervisor.status().iter().map(children::state_of).collect();
        self.say(NodeToHead::Children(now)).await;
        for wish in self.site.as_ref().map(|site| site.store.wishes()).unwrap_or_default() {
            self.say(NodeToHead::WantWeights(wish)).await;
        }
        for (&worker, key) in &self.keys {
            self.say(NodeToHead::Certify(CertificateRequest { worker, public_key: key.public() })).await;
        }
    }

    async fn hear(&mut self, message: HeadToNode) -> Result<Option<End>, JoinError> {
        match message {
            HeadToNode::Run(facts) => self.settle(facts).await?,
            HeadToNode::Assign(workers) => self.assign(workers).await?,
            HeadToNode::Certificate(certificate) => self.certified(certificate).await?,
            HeadToNode::Replace(replace) => {
                let id = ChildId::from(replace.worker.to_string());
                self.supervisor.kill_process(id, replace.pid, replace.why).await;
            }
            HeadToNode::Manifest(manifest) => {
                if let Some(site) = &mut self.site {
                    site.store.begin(manifest);
                }
            }
            HeadToNode::Hashes(part) => {
                if let Some(site) = &mut self.site {
                    site.store.learn(&part);
                }
            }
            HeadToNode::Fetch(fetch) => self.fetch(fetch).await,
            HeadToNode::NoWeights(no) => {
                if let Some(site) = &mut self.site {
                    site.store.refuse(no.version, &no.why);
                }
            }
            HeadToNode::Revoked(hosts) => {
                for host in hosts {
                    certs::revoke(&children::certificates(&self.paths), host)?;
                }
            }
            HeadToNode::Leave(reason) => return Ok(Some(End::Left(reason))),
        }
        Ok(None)
    }

    /// Takes over the run's facts. Workers that were started with the same configuration follow to wherever the head node is now (J4);
    /// another one ends all of them.
    async fn settle(&mut self, facts: RunFacts) -> Result<(), JoinError> {
        let coordinator = SocketAddr::new(self.dialer.head().ip(), facts.coordinator_port);
        whereabouts::say(&self.paths, coordinator)?;
        if let Some(site) = &mut self.site
            && (&site.facts.config, site.facts.slots) == (&facts.config, facts.slots)
        {
            (site.facts, site.children.coordinator) = (facts, coordinator);
            return Ok(());
        }
        let config: Config = toml::from_str(&facts.config).map_err(|e| JoinError::Config(e.to_string()))?;
        let keepers = config.cluster.standby.as_ref().map_or_else(Vec::new, |standby| standby.keepers.clone());
        self.membership.kept_by(&self.paths, &keepers)?;
        self.dialer.kept_by(keepers);
        for who in std::mem::take(&mut self.workers) {
            self.supervisor.remove(ChildId::from(who.to_string())).await;
        }
        self.site = None;
        crate::ledger::place::write_atomically(&self.paths.config(), facts.config.as_bytes())?;
        let logs = self.options.dir.join("logs");
        std::fs::create_dir_all(&logs).map_err(system("make the folder for logs"))?;
        let ring = Arc::new(SharedRing::create(facts.slots)?);
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", ring.fd()));
        let memory = OwnedFd::from(memory.map_err(system("keep the weight ring"))?);
        // Another name for other facts: children of the old ones may still be on their way out.
        self.sites += 1;
        let name = format!("cohort-{:016x}-{}-{}", self.run.0, std::process::id(), self.sites);
        handover::serve(&name, BTreeMap::from([(handover::Item::Ring as u8, memory)]))
            .map_err(system("open the hand-over socket"))?;
        let gate = format!("{name}-gate");
        let mut serving = vec![gate::serve(&gate, self.calls.0.clone()).map_err(system("open the gate for weights"))?];
        let shelf = Arc::new(Shelf::default());
        if let Some(listener) = self.weights_listener.take() {
            let serve = holder::serve(Arc::new(listener), node_terms(self.run), ring.clone(), shelf.clone());
            serving.push(tokio::spawn(serve));
        }
        let children = Children {
            program: std::env::current_exe().map_err(system("find this program"))?,
            run: self.run,
            dir: self.options.dir.clone(),
            logs,
            handover: name,
            gate: Some(gate),
            keeper: None,
            sample_with: self.options.sample_with,
            devices: Mutex::new(self.devices(config)?),
            coordinator,
            authority: None,
        };
        let store = Store::new(ring, shelf);
        self.site = Some(Site { facts, children, store, serving });
        Ok(())
    }

    /// Which of this host's workers computes where.
    fn devices(&self, mut config: Config) -> Result<Assignment, JoinError> {
        if let Some(with) = self.options.sample_with {
            with.apply(&mut config).map_err(JoinError::Config)?;
        }
        let computing = |role| matches!(role, Role::Learner | Role::Rollout);
        let workers = self.options.offers.iter().filter(|(role, _)| computing(*role)).map(|(_, n)| u32::from(*n)).sum();
        Ok(Assignment::of_run(&config, &self.options.devices, workers)?)
    }
}

/// A place for a host that nobody named: `joined-` and the run's number, in the working directory.
#[must_use]
pub fn default_dir(run: RunId) -> PathBuf {
    Path::new(&format!("joined-{:016x}", run.0)).to_owned()
}
