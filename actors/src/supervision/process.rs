//! The node agent's half: child processes instead of actors, the same decisions.
//!
//! | child | failure | action | lost |
//! |---|---|---|---|
//! | any | exit code 0 | none: it is done | nothing |
//! | any | exit code [`exit::NO_RESTART`] or above [`exit::FINAL`] | the supervisor stops the others and ends with the cause | nothing more |
//! | any | another code, a signal, a failed start | restart, as the policy says | what it had in memory |
//! | the agent | any | children read EOF on stdin, and get SIGKILL on Linux | as a kill of each |
//!
//! Invariants
//! - **P1** no orphans: a child is killed when its supervisor is dropped, and leaves on its own when the agent dies
//!   ([`crate::parent`]); what a child leaves behind in its process group is killed with it.
//! - **P2** children are started by one thread that lives as long as the process: the parent-death signal is bound to the
//!   thread that forked, and a descriptor is inheritable only while that thread starts the one child it is for.
use super::oom::{self, OomKills};
use super::state::{ChildId, Command, Escalation, Event, Exit, Restart, SupervisionPolicy, SupervisionState};
use crate::parent;
use crate::shutdown::Shutdown;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

/// Exit codes with a meaning to the supervisor.
pub mod exit {
    /// The work is done.
    pub const DONE: u8 = 0;
    /// The parent is gone.
    pub const ORPHANED: u8 = 75;
    /// It failed and would again: bad configuration, refused by the coordinator.
    pub const NO_RESTART: u8 = 78;
    /// A signal that was not its agent's told it to leave: start it again.
    pub const SIGNALLED: u8 = 76;
    /// `FINAL + n`, n from 2 to 99: as [`NO_RESTART`], and whoever launched the run ends with exit code `n`.
    pub const FINAL: u8 = 100;

    /// The `n` of a `FINAL + n`. 101 is none: a panic that nobody caught ends in it.
    #[must_use]
    pub fn final_code(code: i32) -> Option<u8> {
        u8::try_from(code).ok().and_then(|code| code.checked_sub(FINAL)).filter(|n| (2..=99).contains(n))
    }
}

/// Additions and removals that wait for the supervisor; when it is full, the caller waits.
const ORDERS: usize = 64;
/// Longest part of a log line that becomes part of a cause, in bytes: an error with its remedy fits.
const CAUSE_BYTES: usize = 2000;

/// A child process and how to start it, again and again. It gets a pipe as stdin that stays open as long as the agent
/// lives, [`parent::ENV_PARENT`] and [`parent::ENV_INCARNATION`].
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Its name: `rollout-0`.
    pub id: ChildId,
    /// When it is restarted.
    pub restart: Restart,
    /// What to run.
    pub program: PathBuf,
    /// With which arguments.
    pub args: Vec<OsString>,
    /// Added to the agent's environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its stdout and stderr are appended here; `None`: it shares the agent's.
    pub log: Option<PathBuf>,
    /// Descriptors it inherits under their numbers here.
    pub inherit: Vec<Arc<OwnedFd>>,
    /// Time between SIGTERM and SIGKILL when it is told to stop.
    pub grace: Duration,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessExit {
    /// Its exit code, if it exited.
    pub code: Option<i32>,
    /// The signal, if one killed it.
    pub signal: Option<i32>,
    /// Both in words, with the last line of its log after a failure.
    pub text: String,
}

/// A child as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStatus {
    /// Its name.
    pub id: ChildId,
    /// Its process while it runs.
    pub pid: Option<u32>,
    /// running, stopping, waiting or ended.
    pub phase: &'static str,
    /// Restarts so far.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<ProcessExit>,
}

/// Handle on a running supervisor of processes. The supervisor ends when told to, when it escalates, or when the last
/// handle is gone.
#[derive(Debug, Clone)]
pub struct ProcessSupervisor {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<Vec<ProcessStatus>>,
}

#[derive(Debug)]
enum Order {
    Add(ProcessSpec),
    Remove(ChildId),
    Kill(ChildId, Option<u32>, String),
    Terminate(ChildId),
}

impl ProcessSupervisor {
    /// Starts to supervise, without children at first. The task ends, with every child dead, after `shutdown` (`Ok`) or
    /// after an escalation.
    #[must_use]
    pub fn start(policy: SupervisionPolicy, seed: u64, shutdown: Shutdown) -> (Self, JoinHandle<Result<(), Escalation>>) {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let (publish, status) = watch::channel(Vec::new());
        let supervising = Supervising {
            decisions: SupervisionState::new(policy, seed),
            specs: HashMap::new(),
            alive: HashMap::new(),
            exits: HashMap::new(),
            oom: OomKills::default(),
            waits: JoinSet::new(),
            publish,
            escalated: None,
        };
        (Self { orders, status }, tokio::spawn(supervising.run(inbox, shutdown)))
    }

    /// Supervises and starts one more child. Ignored once the supervisor has ended.
    pub async fn add(&self, spec: ProcessSpec) {
        // Nothing is lost: a supervisor that has ended starts nobody.
        let _ = self.orders.send(Order::Add(spec)).await;
    }

    /// Stops a child and forgets it.
    pub async fn remove(&self, id: ChildId) {
        // A supervisor that has ended has no children.
        let _ = self.orders.send(Order::Remove(id)).await;
    }

    /// Kills a child that runs and does not work, as whoever noticed says in `why`; it is restarted as after any failure.
    pub async fn kill(&self, id: ChildId, why: impl Into<String>) {
        // A supervisor that has ended has no children.
        let _ = self.orders.send(Order::Kill(id, None, why.into())).await;
    }

    /// As [`Self::kill`], if the child still is this process: whoever noticed may speak of its predecessor.
    pub async fn kill_process(&self, id: ChildId, pid: u32, why: impl Into<String>) {
        // A supervisor that has ended has no children.
        let _ = self.orders.send(Order::Kill(id, Some(pid), why.into())).await;
    }

    /// Asks a child to end by itself (SIGTERM). It stays supervised: exit code 0 is its end, a failure restarts it.
    pub async fn terminate(&self, id: ChildId) {
        // A supervisor that has ended has no children.
        let _ = self.orders.send(Order::Terminate(id)).await;
    }

    /// All children now.
    #[must_use]
    pub fn status(&self) -> Vec<ProcessStatus> {
        self.status.borrow().clone()
    }

    /// Follows the children.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Vec<ProcessStatus>> {
        self.status.clone()
    }
}

/// What the supervising task holds. Dropped, it kills every child.
struct Supervising {
    decisions: SupervisionState,
    specs: HashMap<ChildId, ProcessSpec>,
    alive: HashMap<ChildId, Alive>,
    exits: HashMap<ChildId, ProcessExit>,
    oom: OomKills,
    waits: JoinSet<(ChildId, io::Result<ExitStatus>)>,
    publish: watch::Sender<Vec<ProcessStatus>>,
    escalated: Option<Escalation>,
}

struct Alive {
    pid: u32,
    stop: Option<oneshot::Sender<()>>,
    /// Why it was killed from here.
    killed: Option<String>,
    /// Where its control group counts who was killed for want of memory.
    oom: Option<PathBuf>,
}

impl Supervising {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, shutdown: Shutdown) -> Result<(), Escalation> {
        let mut leaving = false;
        let mut looks = tokio::time::interval(oom::LOOK);
        loop {
            let wake = self.decisions.next_wake().map(tokio::time::Instant::from_std);
            let event = tokio::select! {
                _ = shutdown.wait(), if !leaving => {
                    leaving = true;
                    Event::Stop
                }
                order = orders.recv(), if !leaving => match order {
                    Some(Order::Add(spec)) => {
                        let event = Event::Add(spec.id.clone(), spec.restart);
                        self.specs.entry(spec.id.clone()).or_insert(spec);
                        event
                    }
                    Some(Order::Remove(id)) => Event::Remove(id),
                    Some(Order::Kill(id, pid, why)) => {
                        self.kill(&id, pid, why);
                        Event::Tick
                    }
                    Some(Order::Terminate(id)) => {
                        // As a kill: one that has just ended has not been reported yet.
                        let pid = self.alive.get(&id).and_then(|alive| process_id(alive.pid));
                        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
                        Event::Tick
                    }
                    None => {
                        leaving = true;
                        Event::Stop
                    }
                },
                Some(ended) = self.waits.join_next() => match ended {
                    Ok((id, status)) => self.ended(id, status),
                    // A waiting task neither panics nor is aborted while this one runs.
                    Err(_) => Event::Tick,
                },
                () = sleep_until(wake) => Event::Tick,
                now = looks.tick() => {
                    self.oom.look(now.into_std());
                    continue;
                }
            };
            self.on_event(event).await;
            self.report();
            if self.escalated.is_some() {
                leaving = true;
            }
            if leaving && self.alive.is_empty() {
                return self.escalated.map_or(Ok(()), Err);
            }
        }
    }

    async fn on_event(&mut self, event: Event) {
        let mut events = vec![event];
        let mut commands = Vec::new();
        while let Some(event) = events.pop() {
            self.decisions.on_event(tokio::time::Instant::now().into_std(), event, &mut commands);
            for command in commands.drain(..) {
                match command {
                    Command::Start { child, incarnation } => events.extend(self.start(child, incarnation).await),
                    Command::Stop(child) => {
                        // A child that has just ended needs no telling.
                        let _ = self.alive.get_mut(&child).and_then(|c| c.stop.take()).map(|stop| stop.send(()));
                    }
                    Command::Escalate(escalation) => {
                        warn!(target: "cohort::supervision", %escalation, "escalated");
                        self.escalated = Some(escalation);
                    }
                }
            }
        }
        self.specs.retain(|id, _| self.decisions.phase(id).is_some());
        self.exits.retain(|id, _| self.decisions.phase(id).is_some());
    }

    async fn start(&mut self, child: ChildId, incarnation: u32) -> Option<Event> {
        let spec = self.specs.get(&child)?;
        let (grace, started) = (spec.grace, spawn(spec, incarnation).await);
        match started {
            Ok(process) => {
                let pid = process.id().unwrap_or_default();
                info!(target: "cohort::supervision", %child, pid, incarnation, "process_started");
                let (stop, stopped) = oneshot::channel();
                let oom = self.oom.watch(pid);
                self.alive.insert(child.clone(), Alive { pid, stop: Some(stop), killed: None, oom });
                self.waits.spawn(async move { (child, wait(process, stopped, grace).await) });
                None
            }
            Err(error) => {
                let cause = format!("could not start {}: {error}", spec.program.display());
                warn!(target: "cohort::supervision", %child, incarnation, cause, "process_not_started");
                let text = cause.clone();
                self.exits.insert(child.clone(), ProcessExit { code: None, signal: None, text });
                // A program that is not there or not executable will not be there at the next try either.
                let lasting = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
                let exit = if lasting { Exit::Fatal(cause) } else { Exit::Failed(cause) };
                Some(Event::Exited(child, exit))
            }
        }
    }

    fn kill(&mut self, child: &ChildId, pid: Option<u32>, why: String) {
        let Some(alive) = self.alive.get_mut(child).filter(|alive| pid.is_none_or(|pid| pid == alive.pid)) else { return };
        warn!(target: "cohort::supervision", %child, pid = alive.pid, why, "killing");
        alive.killed.get_or_insert(why);
        // It may have ended just now; it is reaped by the task that waits for it, which has not reported yet.
        let _ = process_id(alive.pid).map(|pid| kill_process(pid, Signal::KILL));
    }

    fn ended(&mut self, child: ChildId, status: io::Result<ExitStatus>) -> Event {
        let log = self.specs.get(&child).and_then(|spec| spec.log.as_deref());
        let alive = self.alive.remove(&child);
        let mut ended = match status {
            Ok(status) => ProcessExit { code: status.code(), signal: status.signal(), text: describe(status, log) },
            Err(error) => ProcessExit { code: None, signal: None, text: format!("could not be waited for: {error}") },
        };
        let (pid, killed, oom) = alive.map_or((None, None, None), |alive| (Some(alive.pid), alive.killed, alive.oom));
        let by_kernel = || oom.filter(|_| ended.signal == Some(9)).and_then(|counter| self.oom.claim(&counter));
        if let Some(why) = killed.or_else(by_kernel) {
            ended.text = format!("{}: {why}", ended.text);
        }
        info!(target: "cohort::supervision", %child, pid, how = ended.text, "process_ended");
        let text = ended.text.clone();
        let exit = match ended.code.and_then(|code| u8::try_from(code).ok()) {
            Some(exit::DONE) => Exit::Done,
            Some(exit::NO_RESTART) => Exit::Fatal(text),
            Some(code) if exit::final_code(code.into()).is_some() => Exit::Fatal(text),
            _ => Exit::Failed(text),
        };
        self.exits.insert(child.clone(), ended);
        Event::Exited(child, exit)
    }

    fn report(&self) {
        let status = |id: &ChildId| ProcessStatus {
            id: id.clone(),
            pid: self.alive.get(id).map(|alive| alive.pid),
            phase: self.decisions.phase(id).unwrap_or("ended"),
            restarts: self.decisions.restarts(id).unwrap_or(0),
            last_exit: self.exits.get(id).cloned(),
        };
        self.publish.send_replace(self.decisions.children().map(status).collect());
    }
}

fn process_id(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

async fn sleep_until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// Waits for the end, holding the pipe that tells the child that the agent lives; told to stop, asks first.
async fn wait(mut process: Child, stop: oneshot::Receiver<()>, grace: Duration) -> io::Result<ExitStatus> {
    let group = process.id().and_then(process_id);
    // `Child::wait` would close it.
    let _alive = process.stdin.take();
    let status = tokio::select! {
        status = process.wait() => status,
        _ = stop => {
            // It may have ended by itself just now.
            let _ = group.map(|pid| kill_process(pid, Signal::TERM));
            match tokio::time::timeout(grace, process.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    process.start_kill()?;
                    process.wait().await
                }
            }
        }
    };
    // P1: children of the child that did not notice. There are none as a rule.
    let _ = group.map(|pid| kill_process_group(pid, Signal::KILL));
    status
}

/// Starts the process from the starting thread (P2).
async fn spawn(spec: &ProcessSpec, incarnation: u32) -> io::Result<Child> {
    let mut command = tokio::process::Command::new(&spec.program);
    command
        .args(&spec.args)
        .envs(spec.env.iter().map(|(key, value)| (key, value)))
        .env(parent::ENV_PARENT, std::process::id().to_string())
        .env(parent::ENV_INCARNATION, incarnation.to_string())
        .stdin(Stdio::piped())
        // Of its own, so that a Ctrl-C at the terminal reaches the agent, which drains, and not the workers.
        .process_group(0)
        .kill_on_drop(true);
    if let Some(log) = &spec.log {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        command.stderr(file.try_clone()?).stdout(file);
    }
    let inherit = spec.inherit.clone();
    let runtime = tokio::runtime::Handle::current();
    let (reply, answer) = oneshot::channel();
    starter()?
        .send(Box::new(move || {
            let _runtime = runtime.enter();
            let started = with_inheritable(&inherit, || command.spawn());
            // A caller that is gone drops the child, which kills it.
            let _ = reply.send(started);
        }))
        .map_err(|_| io::Error::other("the starting thread has ended"))?;
    answer.await.map_err(|_| io::Error::other("the starting thread has ended"))?
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread that starts processes. Its queue is bounded by the number of callers, each of which waits for its answer.
fn starter() -> io::Result<&'static std::sync::mpsc::Sender<Job>> {
    static STARTER: OnceLock<Result<std::sync::mpsc::Sender<Job>, String>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (jobs, inbox) = std::sync::mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name("process-starter".to_owned())
            .spawn(move || inbox.into_iter().for_each(|job| job()))
            .map(|_| jobs)
            .map_err(|error| error.to_string())
    });
    starter.as_ref().map_err(|error| io::Error::other(error.clone()))
}

/// Runs `start` while the descriptors are inheritable.
fn with_inheritable<T>(descriptors: &[Arc<OwnedFd>], start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let set = |flags: FdFlags| descriptors.iter().try_for_each(|fd| Ok(fcntl_setfd(fd.as_fd(), flags)?));
    let started = set(FdFlags::empty()).and_then(|()| start());
    set(FdFlags::CLOEXEC)?;
    started
}

fn describe(status: ExitStatus, log: Option<&Path>) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(0), _) => return "exit code 0".to_owned(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match signal_name(signal) {
            Some(name) => format!("killed by signal {signal} ({name})"),
            None => format!("killed by signal {signal}"),
        },
        (None, None) => "ended without a status".to_owned(),
    };
    match log.and_then(|path| last_line(path).ok().flatten()) {
        Some(line) => format!("{how}; last words: {line}"),
        None => how,
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// The last line of a log that says anything, cut to a reasonable length.
fn last_line(path: &Path) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(4096)))?;
    let mut tail = Vec::new();
    file.take(4096).read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().rev().map(str::trim).find(|line| !line.is_empty());
    Ok(line.map(|line| line[..line.floor_char_boundary(CAUSE_BYTES)].to_owned()))
}
