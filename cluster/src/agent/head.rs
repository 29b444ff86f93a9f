//! The head node's agent: the launching process of a run of processes.
use super::autoscale::{Autoscale, Seen};
use super::children::{self, Children};
use super::control::{self, Call, Place, Request};
use super::doors::{self, Doors, Ports};
use super::invitation::{Invites, Left};
use super::launcher::{self, Launcher};
use super::nodes::enrolment::{Enrolment, Seats};
use super::nodes::patience::{Patience, Waiting};
use super::nodes::{Elsewhere, Hosts, HostsArgs, HostsSender};
use super::orders::Orders;
use super::rotation::Rotation;
use super::watched::Watched;
use super::weights::shelf::Shelf;
use super::{AgentError, AgentOptions, news};
use crate::coordinator::LEARNER_IDLE;
use crate::http::{self, HttpOptions, Pulse};
use crate::ledger::{LedgerError, RunPaths};
use crate::progress::{LaunchReport, Progress, ProgressSink, RunStatus};
use cohort_actors::certs::RunAuthority;
use cohort_actors::supervision::process::{ProcessStatus, ProcessSupervisor};
use cohort_actors::transport::TransportOptions;
use cohort_actors::transport::reach::Reach;
use cohort_actors::{ChildId, Escalation, Shutdown, SupervisionPolicy};
use cohort_engine::SharedRing;
use cohort_protocol::{Role, WorkerId};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Between two looks at the coordinator.
const LOOK: Duration = Duration::from_millis(250);
/// The head node among the nodes.
pub(super) const HEAD: WorkerId = WorkerId { role: Role::Node, index: 0 };

/// Processes that run on the head node as long as the run does: the coordinator, and the learner or its lead.
const FIXED: [WorkerId; 2] = [WorkerId { role: Role::Coordinator, index: 0 }, WorkerId { role: Role::Learner, index: 0 }];

/// Runs a whole training run as processes. Ends with the coordinator's report, or when a child cannot be kept alive.
///
/// `shutdown` drains: the coordinator finishes what it must, saves a checkpoint and leaves.
pub async fn run(options: AgentOptions, progress: Arc<dyn ProgressSink>, shutdown: Shutdown) -> Result<LaunchReport, AgentError> {
    let stop = Shutdown::new();
    let (supervisor, ended) = ProcessSupervisor::start(SupervisionPolicy::default(), options.run.0, stop.clone());
    let mut head = Head::start(options, progress, supervisor, shutdown).await?;
    let outcome = head.keep(ended, &stop).await;
    let last = head.supervisor.status();
    // The last picture is a report; the run's result does not hang on it.
    let _ = head.write_status(&last);
    let _ = std::fs::remove_file(head.options.paths.control());
    match outcome? {
        Ok(()) => report(&head.options.paths, children::restarts(&last)),
        Err(escalation) => Err(gave_up(escalation, &last)),
    }
}

/// What the agent holds.
struct Head {
    options: AgentOptions,
    supervisor: ProcessSupervisor,
    children: Children,
    hosts: Hosts,
    heard: news::Heard,
    orders: Orders,
    calls: mpsc::Receiver<Call>,
    /// Ends a run in order.
    shutdown: Shutdown,
    /// Movable workers that run here.
    here: BTreeSet<WorkerId>,
    /// The learner's idle part of every committed step.
    steps: mpsc::Receiver<f64>,
    autoscale: Option<Autoscale>,
    patience: Patience,
    /// Where other hosts join.
    joined_at: String,
    progress: Arc<dyn ProgressSink>,
    /// Taken away with the head node.
    _invited: Option<Left>,
    rotation: Rotation,
    pulse: Arc<Pulse>,
    serving: Vec<JoinHandle<()>>,
}

impl Drop for Head {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

impl Head {
    async fn start(
        options: AgentOptions,
        progress: Arc<dyn ProgressSink>,
        supervisor: ProcessSupervisor,
        shutdown: Shutdown,
    ) -> Result<Self, AgentError> {
        let system = |what| move |source| AgentError::System { what, source };
        let certs = children::certificates(&options.paths);
        let authority = Arc::new(RunAuthority::open_or_create(&certs, options.run)?);
        let reach = Reach::new(options.config.cluster.transport.into(), TransportOptions::default());
        let Ports { coordinator: sockets, others } = Ports::bind(options.config.cluster.listen, &reach)?;
        let address = sockets.local_addr().map_err(system("read the coordinator's port"))?;
        let ring = Arc::new(SharedRing::create(options.slots)?);
        let (stepped, steps) = mpsc::channel(16);
        let progress: Arc<dyn ProgressSink> = Arc::new(Overheard { on: progress, stepped });
        let (name, heard, orders) = doors::hand_over(&options, sockets, &ring, progress.clone())?;
        let shelf = Arc::new(Shelf::default());
        let Doors { facts, listener, listen, mut serving } =
            Doors::open(&options, &authority, &ring, &shelf, &reach, address, others)?;
        let enrolment = Arc::new(enrolled(&options, &authority).map_err(system("read the hosts' file"))?);
        let cluster = &options.config.cluster;
        let cluster_autoscale = cluster.autoscale.map(Autoscale::new);
        let (reward, rollout, ranks) = (cluster.reward, cluster.rollout, cluster.ranks_here());
        // The lead is not placed: it is here.
        let offers = vec![(Role::Reward, reward), (Role::Rollout, rollout), (Role::Learner, ranks - 1)];
        let followers = cluster.followers();
        let patience = Patience::new(Duration::from_secs(cluster.join_patience_s.get().into()));
        let told = progress.clone();
        let Summoned { joined_at, invited, starting } = summon(&options, listen, &enrolment, &progress)?;
        serving.extend(starting);
        let (run, authority_too) = (options.run, authority.clone());
        let hosts = super::nodes::start(HostsArgs {
            run,
            authority: authority_too,
            enrolment: enrolment.clone(),
            ring,
            shelf,
            offers,
            followers,
            facts,
            listener,
            progress,
        });
        let (caller, calls) = mpsc::channel(16);
        let place = Place { socket: format!("{name}-control"), pid: std::process::id(), listen };
        serving.push(control::serve(&place.socket, caller).map_err(system("open the control socket"))?);
        place.write(&options.paths).map_err(system("write control.json"))?;
        let pulse = Pulse::new();
        if let Some(given) = HttpOptions::of(&options.config.cluster) {
            let ready = http::coordinator_speaks(options.paths.clone());
            let served = http::serve(&given, options.paths.clone(), pulse.clone(), ready).await;
            serving.push(served.map_err(system("serve cluster.http"))?.1);
        }
        let program = std::env::current_exe().map_err(system("find this program"))?;
        let children = Children {
            program,
            run: options.run,
            dir: options.paths.root().to_owned(),
            logs: options.logs.clone(),
            handover: name,
            gate: None,
            keeper: options.keeper.clone(),
            sample_with: None,
            devices: Mutex::new(options.devices.clone()),
            coordinator: doors::reachable(address),
            authority: Some(authority.clone()),
        };
        let calls = Calls { calls, hosts: hosts.sender(), enrolment };
        let mut head = Self {
            options,
            supervisor,
            children,
            hosts,
            heard,
            orders,
            calls: calls.pass_on(),
            shutdown,
            here: BTreeSet::new(),
            steps,
            autoscale: cluster_autoscale,
            patience,
            joined_at,
            progress: told,
            _invited: invited,
            rotation: Rotation::new(authority),
            pulse,
            serving,
        };
        for who in FIXED {
            head.add(who).await?;
        }
        let here = head.hosts.here.borrow_and_update().clone();
        head.place(here).await?;
        Ok(head)
    }

    async fn add(&self, who: WorkerId) -> Result<(), AgentError> {
        self.supervisor.add(self.children.spec(who)?).await;
        Ok(())
    }

    /// Starts and stops movable workers until these are the ones that run here.
    async fn place(&mut self, workers: Vec<WorkerId>) -> Result<(), AgentError> {
        let wanted: BTreeSet<WorkerId> = workers.into_iter().collect();
        for &who in self.here.difference(&wanted) {
            self.supervisor.remove(ChildId::from(who.to_string())).await;
            self.children.gone(who);
        }
        for &who in wanted.difference(&self.here) {
            self.add(who).await?;
        }
        self.here = wanted;
        Ok(())
    }

    /// Until the run is over: `Ok` of how the supervisor ended.
    async fn keep(
        &mut self,
        mut ended: JoinHandle<Result<(), Escalation>>,
        stop: &Shutdown,
    ) -> Result<Result<(), Escalation>, AgentError> {
        let supervising = |error| AgentError::System { what: "supervise the children", source: std::io::Error::other(error) };
        let mut status = self.supervisor.watch();
        let mut watched = Watched::new();
        let mut look = tokio::time::interval(LOOK);
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                escalated = &mut ended => return escalated.map_err(supervising),
                changed = status.changed() => {
                    let now = status.borrow_and_update().clone();
                    self.write_status(&now)?;
                    if changed.is_err() || children::coordinator_has_left(&now, watched.is_draining()) {
                        self.hosts.farewell("the run is over").await;
                        stop.trigger("the coordinator has left");
                        return ended.await.map_err(supervising);
                    }
                    if watched.restarted(children::coordinator_pid(&now)) {
                        self.orders.repeat();
                    }
                }
                Ok(()) = self.hosts.here.changed() => {
                    let here = self.hosts.here.borrow_and_update().clone();
                    self.place(here).await?;
                }
                Ok(()) = self.hosts.elsewhere.changed() => {
                    self.hosts.elsewhere.mark_unchanged();
                    self.write_status(&self.supervisor.status())?;
                }
                Ok(()) = self.hosts.rollouts.changed() => {
                    let count = *self.hosts.rollouts.borrow_and_update();
                    self.orders.change(|standing| standing.rollout_workers = Some(count));
                }
                Some(Call { request, reply }) = self.calls.recv() => {
                    let stopping = request == Request::Stop;
                    let answer = if request == Request::Rotate { self.renew().await } else { self.answer(&request) };
                    // Who asked may have hung up.
                    let _ = reply.send(answer);
                    if stopping {
                        self.hosts.farewell("the run was stopped").await;
                        return Err(AgentError::Stopped { run: self.options.paths.root().to_owned() });
                    }
                }
                () = self.rotation.due() => {
                    if let Err(why) = self.renew().await {
                        // Two more renewals come before the certificates end.
                        tracing::warn!(target: "cohort::agent", why, "certificates_not_renewed");
                    }
                }
                Some(learner_idle) = self.steps.recv() => self.stepped(learner_idle).await,
                _ = look.tick() => {
                    self.pulse.beat();
                    watched.look(&self.supervisor, *self.heard.last.borrow()).await;
                    self.wait_for_hosts().await?;
                }
                Some((worker, pid, why)) = self.heard.replace.recv() => self.hosts.hangs(worker, pid, why).await,
                Some((worker, pid, why)) = self.hosts.kills.recv() => {
                    self.supervisor.kill_process(ChildId::from(worker.to_string()), pid, why).await;
                }
                // The coordinator alone is told: it drains, saves and ends; its end stops the others. Where it fails on the
                // way the next one is told too.
                _ = shutdown.wait(), if !watched.is_draining() => watched.drain(),
            }
        }
    }

    /// Says what the run lacks, and gives it up when nobody has brought it in time.
    async fn wait_for_hosts(&mut self) -> Result<(), AgentError> {
        let lacking = self.hosts.lacking.borrow().clone();
        for news in self.patience.look(Instant::now(), &lacking, self.orders.paused()) {
            let (head, waited) = (self.joined_at.clone(), self.patience.limit());
            match news {
                Waiting::Begun(role) => {
                    let text = format!(
                        "no host has {} workers: waiting up to {} s for one (cluster join {head} --roles {role}=1)",
                        if role == Role::Learner { "enough learner".to_owned() } else { role.to_string() },
                        waited.as_secs()
                    );
                    tracing::info!(target: "cohort::agent", text, "waits_for_hosts");
                    self.progress.emit(Progress::Notice(text));
                }
                Waiting::Over(role) => {
                    self.hosts.farewell("the run has waited for workers in vain").await;
                    return Err(AgentError::Lonely { role, waited, head, run: self.options.paths.root().to_owned() });
                }
            }
        }
        Ok(())
    }

    /// Requests that this task itself carries out.
    fn answer(&mut self, request: &Request) -> Result<Value, String> {
        match request {
            Request::Pause => self.orders.change(|standing| standing.paused = true),
            Request::Resume => self.orders.change(|standing| standing.paused = false),
            Request::Drain { .. } => self.shutdown.trigger("`cluster drain`"),
            Request::Stop | Request::Scale { .. } | Request::Token { .. } | Request::Rotate => {}
        }
        Ok(json!({}))
    }

    /// New certificates for every place of this host; other hosts are told to ask for theirs.
    async fn renew(&mut self) -> Result<Value, String> {
        let ours: Vec<WorkerId> = FIXED.iter().chain(&self.here).copied().chain([HEAD]).collect();
        let here = self.rotation.renew(ours).map_err(|error| error.to_string())?;
        let hosts = self.hosts.sender().renew().await?;
        tracing::info!(target: "cohort::agent", here, hosts, "certificates_renewed");
        Ok(json!({ "here": here, "hosts": hosts }))
    }

    /// A step was committed: perhaps there should be more rollout workers, or fewer.
    async fn stepped(&mut self, learner_idle: f64) {
        let Some(autoscale) = &mut self.autoscale else { return };
        let status = std::fs::read(self.options.paths.status()).ok();
        let status: Option<RunStatus> = status.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let ready = status.map_or(0, |status| status.groups.ready);
        let ready_steps = ready as f64 / f64::from(self.options.config.training.groups_per_step.max(1));
        let workers = *self.hosts.rollouts.borrow();
        let Some(count) = autoscale.stepped(Seen { learner_idle, ready_steps, workers }) else { return };
        tracing::info!(target: "cohort::agent", from = workers, to = count, learner_idle, ready_steps, "autoscaled");
        if let Err(why) = self.hosts.sender().scale(Role::Rollout, count).await {
            tracing::warn!(target: "cohort::agent", why, "not_scaled");
        }
    }

    fn write_status(&self, here: &[ProcessStatus]) -> Result<(), AgentError> {
        let elsewhere: Vec<Elsewhere> = self.hosts.elsewhere.borrow().clone();
        let paths = &self.options.paths;
        match children::write_status(paths, here, &elsewhere, |name| self.children.device(name)) {
            // A picture that stays behind; the coordinator says that the run waits for room, and for how long.
            Err(error @ LedgerError::NoSpace { .. }) => {
                tracing::warn!(target: "cohort::agent", %error, "processes_not_written");
                Ok(())
            }
            written => written.map_err(AgentError::RunDirectory),
        }
    }
}

/// The book of hosts; where several hosts keep the run, this keeper gives out places of its own.
fn enrolled(options: &AgentOptions, authority: &Arc<RunAuthority>) -> std::io::Result<Enrolment> {
    let keepers = options.config.cluster.standby.as_ref().map_or(1, |standby| standby.keepers.len());
    let seats = Seats::of(options.keeper_number, keepers);
    let file = children::certificates(&options.paths).join("hosts.json");
    Enrolment::open(options.run, file, authority.clone(), seats)
}

/// Hosts that are called to take part.
#[derive(Default)]
struct Summoned {
    /// Where they join.
    joined_at: String,
    /// The invitation of those that a scheduler starts.
    invited: Option<Left>,
    /// Those that are started by a command.
    starting: Vec<JoinHandle<()>>,
}

/// Calls the hosts that the configuration or a scheduler names, where others can join at all.
fn summon(
    options: &AgentOptions,
    listen: Option<SocketAddr>,
    enrolment: &Arc<Enrolment>,
    progress: &Arc<dyn ProgressSink>,
) -> Result<Summoned, AgentError> {
    let Some(listen) = listen else { return Ok(Summoned::default()) };
    let (run, cluster, logs) = (options.run, options.config.cluster.clone(), options.logs.clone());
    let joined_at = launcher::advertised(&cluster, listen);
    let invite = |invites: &Invites| {
        let named = invites.head.as_ref().map(|name| format!("{name}:{}", listen.port()));
        let left = invites.leave(enrolment, named.unwrap_or_else(|| joined_at.clone()));
        let system = |source| AgentError::System { what: "leave an invitation for the other hosts", source };
        left.map_err(std::io::Error::other).map_err(system)
    };
    let invited = options.invites.as_ref().map(invite).transpose()?;
    let launcher = Launcher { run, cluster, listen, logs, enrolment: enrolment.clone(), progress: progress.clone() };
    Ok(Summoned { joined_at, invited, starting: launcher.start() })
}

/// Passes the news on, and what the number of workers hangs on to the agent.
struct Overheard {
    on: Arc<dyn ProgressSink>,
    stepped: mpsc::Sender<f64>,
}

impl ProgressSink for Overheard {
    fn emit(&self, news: Progress) {
        if let Progress::Step(step) = &news {
            let idle = step.metrics.iter().find(|(name, _)| name == LEARNER_IDLE);
            // Full: the agent has heard of enough steps to decide.
            let _ = idle.map(|(_, idle)| self.stepped.try_send(*idle));
        }
        self.on.emit(news);
    }
}

/// Requests that take their time are answered beside the agent's loop; the others are passed on to it.
struct Calls {
    calls: mpsc::Receiver<Call>,
    hosts: HostsSender,
    enrolment: Arc<Enrolment>,
}

impl Calls {
    fn pass_on(mut self) -> mpsc::Receiver<Call> {
        let (on, passed) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(Call { request, reply }) = self.calls.recv().await {
                let answer = match request {
                    Request::Scale { role, count } => {
                        let scaled = self.hosts.scale(role, count).await;
                        scaled.map(|()| json!({ "role": role, "count": count }))
                    }
                    Request::Drain { host: Some(host) } => self.hosts.dismiss(host).await.map(|()| json!({ "host": host })),
                    Request::Token { uses, seconds } => {
                        let token = self.enrolment.issue(uses, seconds);
                        token.and_then(|token| serde_json::to_value(&token).map_err(|e| e.to_string()))
                    }
                    request => {
                        if on.send(Call { request, reply }).await.is_err() {
                            return;
                        }
                        continue;
                    }
                };
                // Who asked may have hung up.
                let _ = reply.send(answer);
            }
        });
        passed
    }
}

/// The run's end: as the child that cannot run said by its exit code.
fn gave_up(escalation: Escalation, status: &[ProcessStatus]) -> AgentError {
    let exit = children::final_exit(&escalation, status);
    AgentError::GaveUp { escalation, exit }
}

fn report(paths: &RunPaths, restarts: u64) -> Result<LaunchReport, AgentError> {
    let path = paths.summary();
    let missing = |why: String| AgentError::NoReport { path: path.clone(), why };
    let text = std::fs::read_to_string(&path).map_err(|e| missing(e.to_string()))?;
    let mut report: LaunchReport = serde_json::from_str(&text).map_err(|e| missing(e.to_string()))?;
    report.restarts = restarts;
    Ok(report)
}
