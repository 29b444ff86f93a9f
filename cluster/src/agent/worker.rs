//! A child's side: one role in a process of its own.
//!
//! Exit codes: 0 the work is done or the coordinator drained it; [`exit::NO_RESTART`] it cannot run and would not the next
//! time either (configuration, model, a refusal); anything else: start it again.
use super::children::{certificates, pid_of};
use super::handover::{self, Item};
use crate::config::Config;
use crate::coordinator::{self, Replacer};
use crate::ledger::RunPaths;
use crate::progress::{Progress, ProgressSink};
use crate::run::source::{Surroundings, coordinator_args};
use crate::run::wiring::{Wiring, WiringError};
use cohort_actors::certs::Identity;
use cohort_actors::supervision::process::exit;
use cohort_actors::transport::quic::{QuicDialer, QuicListener, QuicOptions};
use cohort_actors::{Dialer, Shutdown, crash, parent};
use cohort_engine::{SharedRing, WeightRing};
use cohort_protocol::{Role, RunId, WorkerId};
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};

/// How the agent started this process.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// What it is.
    pub who: WorkerId,
    /// The run.
    pub run: RunId,
    /// Its directory.
    pub run_dir: PathBuf,
    /// Where the coordinator listens.
    pub coordinator: SocketAddr,
    /// Name of the agent's hand-over socket.
    pub handover: String,
}

/// A failure with the exit code it ends in.
#[derive(Debug)]
pub struct WorkerFailure {
    /// Exit code.
    pub code: u8,
    /// Place, value and remedy.
    pub message: String,
}

/// It will fail again: do not restart.
fn hopeless(error: impl std::fmt::Display) -> WorkerFailure {
    WorkerFailure { code: exit::NO_RESTART, message: error.to_string() }
}

/// It may go better the next time.
fn passing(error: impl std::fmt::Display) -> WorkerFailure {
    WorkerFailure { code: 1, message: error.to_string() }
}

/// Runs one role to its end.
pub fn run(options: WorkerOptions) -> Result<(), WorkerFailure> {
    crash::arm_from_env().map_err(hopeless)?;
    let shutdown = Shutdown::new();
    parent::exit_with_parent(&shutdown).map_err(hopeless)?;
    let text = std::fs::read_to_string(RunPaths::new(&options.run_dir).config()).map_err(hopeless)?;
    let config: Config = toml::from_str(&text).map_err(hopeless)?;
    crate::logging::to_stderr(&config.logging);
    let wiring = Wiring::open(Arc::new(config), options.run, &options.run_dir).map_err(hopeless)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(passing)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(passing)?;
        let asked = shutdown.clone();
        let watch = tokio::spawn(async move {
            if terminate.recv().await.is_some() {
                asked.trigger("SIGTERM");
            }
        });
        let outcome = role(&options, &wiring, shutdown).await;
        watch.abort();
        outcome
    })
}

async fn role(options: &WorkerOptions, wiring: &Wiring, shutdown: Shutdown) -> Result<(), WorkerFailure> {
    let paths = RunPaths::new(&options.run_dir);
    let identity = Identity::load(&certificates(&paths), options.run, options.who).map_err(hopeless)?;
    let quic = QuicOptions::default();
    if options.who.role == Role::Coordinator {
        let socket = UdpSocket::from(handover::take(&options.handover, Item::Socket).map_err(passing)?);
        let listener = QuicListener::new(socket, &identity, quic).map_err(passing)?;
        let teller = handover::take(&options.handover, Item::Progress).map_err(passing)?;
        let progress = Arc::new(Teller(Mutex::new(teller.into())));
        let around =
            Surroundings { shared_engine: false, progress, replacer: Arc::new(Killer(paths.clone())), begun: Instant::now() };
        let args = coordinator_args(wiring, &paths, around).map_err(hopeless)?;
        return coordinator::run(args, Arc::new(listener), shutdown).await.map(|_| ()).map_err(|e| failure(&e));
    }
    let dialer: Arc<dyn Dialer> = Arc::new(QuicDialer::new(options.coordinator, &identity, quic).map_err(passing)?);
    let wired = |error: WiringError| hopeless(error);
    match options.who.role {
        Role::Rollout => {
            let args = wiring.rollout(options.who.index, wiring.engine().map_err(wired)?, ring(options)?).map_err(wired)?;
            cohort_rollout::run_worker(args, dialer, shutdown).await.map_err(passing)
        }
        Role::Reward => {
            let args = wiring.reward(options.who.index).map_err(wired)?;
            cohort_reward_workers::run_worker(args, dialer, shutdown).await.map_err(passing)
        }
        Role::Learner => {
            let args = wiring.learner(wiring.engine().map_err(wired)?, ring(options)?).map_err(wired)?;
            cohort_learner::run_worker(args, dialer, shutdown).await.map_err(passing)
        }
        Role::Coordinator => Ok(()),
    }
}

fn ring(options: &WorkerOptions) -> Result<Arc<dyn WeightRing>, WorkerFailure> {
    let memory = handover::take(&options.handover, Item::Ring).map_err(passing)?;
    let ring = SharedRing::inherit(memory.as_raw_fd()).map_err(passing)?;
    Ok(Arc::new(ring))
}

/// Errors of a run that another start cannot mend end it.
fn failure(error: &coordinator::CoordinatorError) -> WorkerFailure {
    match error {
        coordinator::CoordinatorError::Internal(_) => passing(error),
        _ => hopeless(error),
    }
}

/// Kills a hung worker of this host by the process that `agent.json` names; the agent starts another.
struct Killer(RunPaths);

impl Replacer for Killer {
    fn replace(&self, worker: WorkerId, why: &str) {
        let Some(pid) = pid_of(&self.0, worker) else { return };
        tracing::warn!(target: "cohort::coordinator", %worker, pid, why, "worker_replaced");
        if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            // A process that is gone already has been replaced.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// News as JSON lines into the agent's pipe.
struct Teller(Mutex<std::fs::File>);

impl ProgressSink for Teller {
    fn emit(&self, news: Progress) {
        let Ok(mut line) = serde_json::to_vec(&news) else { return };
        line.push(b'\n');
        // An agent that is gone takes this process with it.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
    }
}
