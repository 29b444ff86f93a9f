//! A child's side: one role in a process of its own.
//!
//! Exit codes: 0 the coordinator said that the run is over; [`exit::FINAL`] + n it cannot run and would not the next time
//! either (configuration, model, a refusal), and the launch ends with code n; [`exit::NO_RESTART`] the same where n is not
//! known; [`exit::SIGNALLED`] somebody sent SIGTERM; anything else: start it again.
use super::children::certificates;
use super::handover::{self, Item};
use super::meeting::Meeting;
use super::news::Teller;
use super::orders;
use super::weights::gate::GatedRing;
use super::whereabouts::{CoordinatorDialer, Whereabouts};
use crate::cli::CliError;
use crate::config::Config;
use crate::coordinator::{self, CoordinatorError};
use crate::ledger::{LedgerError, RunPaths};
use crate::run::RunError;
use crate::run::failure::Failure;
use crate::run::sampler::SampleWith;
use crate::run::source::{Surroundings, coordinator_args};
use crate::run::wiring::Wiring;
use cohort_actors::certs::Identity;
use cohort_actors::supervision::process::exit;
use cohort_actors::transport::TransportOptions;
use cohort_actors::transport::reach::{Carrier, Reach, Sockets};
use cohort_actors::{Dialer, Shutdown, crash, parent};
use cohort_engine::{SharedRing, WeightRing};
use cohort_protocol::{Role, RunId, WorkerId};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
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
    /// Name of the agent's gate for weights, on a host that joined.
    pub gate: Option<String>,
    /// Name of this host's keeper's socket, for a coordinator whose ledger several hosts keep.
    pub keeper: Option<String>,
    /// What this host's samplers compute with, where that is not the run's.
    pub sample_with: Option<SampleWith>,
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

impl From<Failure> for WorkerFailure {
    fn from(Failure { exit, lasting, message }: Failure) -> Self {
        Self { code: if lasting { exit::FINAL + exit as u8 } else { 1 }, message }
    }
}

/// Where memory runs out the kernel is to take a worker, which costs its present work, before the coordinator or the agent.
/// A plug-in inherits it.
fn offer_to_the_oom_killer() {
    // A system that does not let it chooses by size alone.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
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
    if options.who.role != Role::Coordinator {
        offer_to_the_oom_killer();
    }
    let text = std::fs::read_to_string(RunPaths::new(&options.run_dir).config()).map_err(hopeless)?;
    let mut config: Config = toml::from_str(&text).map_err(hopeless)?;
    if let Some(with) = options.sample_with.filter(|_| options.who.role == Role::Rollout) {
        with.apply(&mut config).map_err(hopeless)?;
    }
    crate::logging::to_stderr(&config.logging);
    let wiring = Wiring::open(Arc::new(config), options.run, &options.run_dir).map_err(Failure::from)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(passing)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(passing)?;
        let asked = shutdown.clone();
        let watch = tokio::spawn(async move {
            if terminate.recv().await.is_some() {
                asked.trigger("SIGTERM");
            }
        });
        let outcome = role(&options, &wiring, shutdown.clone()).await;
        watch.abort();
        match outcome {
            // A coordinator told to leave drains the run, which is over for this launch then. A worker's run is not: where
            // it is the agent who asked, the agent does not look at the code.
            Ok(()) if options.who.role != Role::Coordinator && shutdown.is_triggered() => {
                let why = shutdown.reason().unwrap_or_default();
                Err(WorkerFailure { code: exit::SIGNALLED, message: format!("told to leave ({why})") })
            }
            outcome => outcome,
        }
    })
}

async fn role(options: &WorkerOptions, wiring: &Wiring, shutdown: Shutdown) -> Result<(), WorkerFailure> {
    let paths = RunPaths::new(&options.run_dir);
    let identity = Arc::new(Identity::load(&certificates(&paths), options.run, options.who).map_err(hopeless)?);
    let carrier = Carrier::from(wiring.config.cluster.transport);
    let reach = Reach::new(carrier, TransportOptions::default());
    if options.who.role == Role::Coordinator {
        let take = |item| move || handover::take(&options.handover, item);
        let sockets = Sockets::from_descriptors(carrier, take(Item::Udp), take(Item::Tcp)).map_err(passing)?;
        let listener = reach.listen(sockets, &identity).map_err(passing)?;
        let teller = Teller::new(handover::take(&options.handover, Item::Progress).map_err(passing)?.into());
        let beats = tokio::spawn(teller.clone().beat());
        let orders = handover::take(&options.handover, Item::Orders).map_err(passing)?;
        let standing = orders::listen(orders.into()).map_err(passing)?;
        let around = Surroundings {
            shared_engine: false,
            progress: teller.clone(),
            replacer: teller,
            standing,
            keeper: options.keeper.clone(),
            begun: Instant::now(),
        };
        let args = coordinator_args(wiring, &paths, around).map_err(Failure::from)?;
        let outcome = coordinator::run(args, Arc::new(listener), shutdown).await;
        beats.abort();
        return outcome.map(|_| ()).map_err(failure);
    }
    // Only a host that joined outlives its head node.
    let coordinator = Arc::new(match &options.gate {
        Some(_) => Whereabouts::said_in(&paths, options.coordinator),
        None => Whereabouts::fixed(options.coordinator),
    });
    let dialer: Arc<dyn Dialer> = Arc::new(CoordinatorDialer::new(coordinator.clone(), reach.clone(), identity.clone()));
    let listen = wiring.config.cluster.listen;
    work(options, wiring, Meeting { coordinator, listen, identity, reach }, dialer, shutdown).await
}

async fn work(
    options: &WorkerOptions,
    wiring: &Wiring,
    meeting: Meeting,
    dialer: Arc<dyn Dialer>,
    shutdown: Shutdown,
) -> Result<(), WorkerFailure> {
    let ended: Result<(), Failure> = match options.who.role {
        Role::Rollout => {
            let engine = wiring.sampling_engine().map_err(Failure::from)?;
            let args = wiring.rollout(options.who.index, engine, ring(options)?).map_err(Failure::from)?;
            cohort_rollout::run_worker(args, dialer, shutdown).await.map_err(Failure::from)
        }
        Role::Reward => {
            let args = wiring.reward(options.who.index).map_err(Failure::from)?;
            cohort_reward_workers::run_worker(args, dialer, shutdown).await.map_err(Failure::from)
        }
        Role::Learner => {
            let engine = wiring.learning_engine().map_err(Failure::from)?;
            let args = wiring.learner(options.who.index, engine, ring(options)?, Arc::new(meeting)).map_err(Failure::from)?;
            cohort_learner::run_worker(args, dialer, shutdown).await.map_err(Failure::from)
        }
        Role::Coordinator | Role::Node | Role::Keeper => Ok(()),
    };
    Ok(ended?)
}

fn ring(options: &WorkerOptions) -> Result<Arc<dyn WeightRing>, WorkerFailure> {
    let memory = handover::take(&options.handover, Item::Ring).map_err(passing)?;
    let ring = SharedRing::inherit(memory.as_raw_fd()).map_err(passing)?;
    Ok(match &options.gate {
        Some(gate) => Arc::new(GatedRing::new(ring, gate.clone())),
        None => Arc::new(ring),
    })
}

/// Errors of a run that another start cannot mend end it.
fn failure(error: CoordinatorError) -> WorkerFailure {
    match error {
        CoordinatorError::Internal(_) => passing(error),
        // Its keeper may find the others again, or lead no more and end this host's run.
        CoordinatorError::Ledger(LedgerError::NotKept { .. } | LedgerError::Overtaken { .. }) => passing(error),
        error => {
            let CliError { exit, message } = RunError::from(error).into();
            Failure { exit, lasting: true, message }.into()
        }
    }
}
