//! The node agent: the launching process of a `--processes` run, parent of every process of its host.
//!
//! | child | failure | action | lost |
//! |---|---|---|---|
//! | coordinator | any | restarted; recovers from the ledger in a new epoch, workers reconnect | nothing committed or accepted |
//! | coordinator | says nothing for [`SILENCE`] | killed, then as above | nothing committed or accepted |
//! | rollout worker | any | restarted; its groups are leased again and come out with the same bits | the groups in its hands |
//! | reward worker | any | restarted; its groups are sent to be graded again | the scores in its hands |
//! | learner | any | restarted; loads the last checkpoint, replays the committed intents; its followers join it again | the step in work |
//! | follower of the learner | any | restarted; takes the lead's state, the step in work is taken again | its part of the step in work |
//! | any | more than 20 failures in 60 s, or an exit that says "not again" | the run ends, naming the first cause | nothing committed |
//! | the agent | any | every child leaves within 5 s; `launch --resume` goes on | nothing committed |
//!
//! Invariants
//! - **N1** the agent decides nothing about training: it starts, watches, restarts and hands over descriptors.
//! - **N2** what must outlive a child (port, weights, progress pipe) is held here (`handover`).
//! - **N3** when the coordinator has ended well, every other child is told to leave, and none survives the agent.
mod children;
mod handover;
mod meeting;
mod news;
mod worker;

pub use worker::{WorkerOptions, run as run_worker};

use crate::cli::Exit;
use crate::config::Config;
use crate::ledger::RunPaths;
use crate::progress::{LaunchReport, ProgressSink};
use children::Children;
use cohort_actors::certs::{CertError, RunAuthority};
use cohort_actors::supervision::process::{ProcessStatus, ProcessSupervisor, exit};
use cohort_actors::{Escalation, Shutdown, SupervisionPolicy};
use cohort_engine::{RingError, SharedRing};
use cohort_protocol::RunId;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// A coordinator that says nothing for so long (it does four times a second) is killed and started again.
pub const SILENCE: Duration = Duration::from_secs(30);
/// For tests: another [`SILENCE`], in milliseconds.
pub const SILENCE_VARIABLE: &str = "COHORT_COORDINATOR_SILENCE_MS";
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(250);

/// Why a run of processes ended early.
#[derive(Debug, Error)]
pub enum AgentError {
    /// A child failed too often, or said that it cannot run. Stop.
    #[error("the run was given up: {escalation}")]
    GaveUp {
        /// Who, and the first cause.
        escalation: Escalation,
        /// How the launch ends, as the child said.
        exit: Exit,
    },
    /// The certificates of the run cannot be made. Stop.
    #[error(transparent)]
    Certificates(#[from] CertError),
    /// The weight ring cannot be made. Stop.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The system refused something. Stop.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The coordinator ended well and left no report.
    #[error("the coordinator left no readable report in {}: {why}", path.display())]
    NoReport {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What the agent runs.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The resolved configuration, already written to the run directory.
    pub config: Arc<Config>,
    /// The run.
    pub run: RunId,
    /// Its directory, locked by the caller.
    pub paths: RunPaths,
    /// Folder of this launch's logs.
    pub logs: PathBuf,
    /// Slots of the weight ring.
    pub slots: u32,
}

/// Runs a whole training run as processes. Ends with the coordinator's report, or when a child cannot be kept alive.
///
/// `shutdown` drains: the coordinator finishes what it must, saves a checkpoint and leaves.
pub async fn run(options: AgentOptions, progress: Arc<dyn ProgressSink>, shutdown: Shutdown) -> Result<LaunchReport, AgentError> {
    let system = |what| move |source| AgentError::System { what, source };
    let authority = RunAuthority::open_or_create(&children::certificates(&options.paths), options.run)?;
    // Loopback only: nothing outside this host can reach the run.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(system("bind the coordinator's port"))?;
    let address = socket.local_addr().map_err(system("read the coordinator's port"))?;
    let ring = SharedRing::create(options.slots)?;
    let (news, teller) = std::io::pipe().map_err(system("open the progress pipe"))?;
    let name = format!("cohort-{:016x}-{}", options.run.0, std::process::id());
    let ring_memory = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", ring.fd()));
    let ring_memory = OwnedFd::from(ring_memory.map_err(system("keep the weight ring"))?);
    let items = BTreeMap::from([
        (handover::Item::Socket as u8, OwnedFd::from(socket)),
        (handover::Item::Ring as u8, ring_memory),
        (handover::Item::Progress as u8, OwnedFd::from(teller)),
    ]);
    handover::serve(&name, items).map_err(system("open the hand-over socket"))?;
    let mut heard = news::listen(news, progress).map_err(system("start the progress reader"))?;

    let stop = Shutdown::new();
    let (supervisor, mut ended) = ProcessSupervisor::start(SupervisionPolicy::default(), options.run.0, stop.clone());
    let program = std::env::current_exe().map_err(system("find this program"))?;
    let children = Children { program, options: &options, authority: &authority, handover: name, coordinator: address };
    for spec in children.specs()? {
        supervisor.add(spec).await;
    }
    let mut status = supervisor.watch();
    let mut draining = Draining::default();
    let mut silence = news::Silence::new(Instant::now(), silence_limit());
    let mut look = tokio::time::interval(LOOK);
    let (mut coordinator, mut since) = (None, Instant::now());
    let outcome = loop {
        tokio::select! {
            escalated = &mut ended => break escalated,
            changed = status.changed() => {
                let now = status.borrow_and_update().clone();
                children::write_status(&options.paths, &now).map_err(system("write agent.json"))?;
                if changed.is_err() || children::coordinator_has_left(&now, draining.by.is_some()) {
                    stop.trigger("the coordinator has left");
                    break ended.await;
                }
                let pid = children::coordinator_pid(&now);
                if pid != coordinator {
                    coordinator = pid;
                    since = Instant::now();
                    silence.restart(since);
                }
            }
            _ = look.tick() => {
                let (now, last) = (Instant::now(), *heard.last.borrow());
                if let Some(by) = draining.by {
                    if now > by {
                        // Nothing waits for ever: what it has not saved is in the ledger.
                        supervisor.remove(children::coordinator_id()).await;
                        supervisor.kill(children::coordinator_id(), "it did not leave in time").await;
                    } else if last > since && draining.told != coordinator {
                        // Not before it speaks: a SIGTERM that comes too early kills it.
                        draining.told = coordinator;
                        supervisor.terminate(children::coordinator_id()).await;
                    }
                } else if let Some(silent) = silence.look(now, last) {
                    silence.restart(now);
                    supervisor.kill(children::coordinator_id(), format!("it said nothing for {:.1} s", silent.as_secs_f64())).await;
                }
            }
            Some((worker, why)) = heard.replace.recv() => supervisor.kill(worker, why).await,
            // The coordinator alone is told: it drains, saves and ends; its end stops the others. Where it fails on the way
            // the next one is told too.
            _ = shutdown.wait(), if draining.by.is_none() => draining.by = Some(Instant::now() + children::GRACE_COORDINATOR),
        }
    };
    let last = supervisor.status();
    // The last picture is a report; the run's result does not hang on it.
    let _ = children::write_status(&options.paths, &last);
    match outcome {
        Ok(Ok(())) => report(&options.paths, children::restarts(&last)),
        Ok(Err(escalation)) => Err(gave_up(escalation, &last)),
        Err(error) => Err(AgentError::System { what: "supervise the children", source: std::io::Error::other(error) }),
    }
}

/// The run was asked to stop.
#[derive(Debug, Default)]
struct Draining {
    /// When the coordinator must have left.
    by: Option<Instant>,
    /// The process that was told.
    told: Option<u32>,
}

fn silence_limit() -> Duration {
    let given = std::env::var(SILENCE_VARIABLE).ok().and_then(|ms| ms.parse().ok());
    given.map_or(SILENCE, Duration::from_millis)
}

/// The run's end: as the child that cannot run said by its exit code.
fn gave_up(escalation: Escalation, status: &[ProcessStatus]) -> AgentError {
    let exit = match &escalation {
        Escalation::Fatal { child, .. } => {
            let code = status.iter().find(|s| s.id == *child).and_then(|s| s.last_exit.as_ref()?.code);
            code.and_then(exit::final_code).and_then(Exit::from_code)
        }
        Escalation::TooManyRestarts { .. } => None,
    };
    AgentError::GaveUp { escalation, exit: exit.unwrap_or(Exit::WorkerGaveUp) }
}

fn report(paths: &RunPaths, restarts: u64) -> Result<LaunchReport, AgentError> {
    let path = paths.summary();
    let missing = |why: String| AgentError::NoReport { path: path.clone(), why };
    let text = std::fs::read_to_string(&path).map_err(|e| missing(e.to_string()))?;
    let mut report: LaunchReport = serde_json::from_str(&text).map_err(|e| missing(e.to_string()))?;
    report.restarts = restarts;
    Ok(report)
}
