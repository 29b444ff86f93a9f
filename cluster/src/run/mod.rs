//! `launch`: from a resolved configuration to the final report, in one process or as processes.
//!
//! Invariants
//! - **R1** everything that can be checked is checked before the run directory is touched: model headers, data set, agent,
//!   rewards, numerics of a resumed run.
//! - **R2** a run directory belongs to one run and one launch at a time ([`directory`]).
//! - **R3** the first SIGINT or SIGTERM drains (the report says `finished = false`), the second ends the process at once;
//!   children of the node agent cannot outlive it.
//!
//! Files: `directory` the run's folder; `resume` what a resumed run may change; `sampler` a host that samples with other numerics; `wiring` from configuration to workers;
//! `source` from configuration to the coordinator; `failure` how workers end badly; `inproc` everything in this process,
//! `hangs` what of it hangs; `replay` a run's steps once more. Runs of processes are [`crate::agent`]'s.
pub mod directory;
pub(crate) mod failure;
mod hangs;
mod inproc;
pub mod replay;
mod resume;
pub mod sampler;
pub mod source;
pub mod wiring;

use crate::agent::{self, AgentError, AgentOptions, Invites};
use crate::cli::Exit;
use crate::config::{ConfigError, Resolved};
use crate::coordinator::CoordinatorError;
use crate::devices::{Assignment, DeviceError};
use crate::ledger::LedgerError;
use crate::logging;
use crate::progress::{LaunchReport, Progress, ProgressSink};
use cohort_actors::certs::RunAuthority;
use cohort_actors::{Shutdown, crash, parent};
use cohort_protocol::WorkerId;
use directory::Prepared;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use wiring::{Wiring, WiringError};

/// What `launch` was asked for besides the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchOptions {
    /// Where the run is written; a new folder in `cluster.run_root` if `None`.
    pub run_dir: Option<PathBuf>,
    /// A run to go on with.
    pub resume: Option<PathBuf>,
    /// Throw away what the run directory holds.
    pub clean: bool,
    /// Hosts of the same allocation that are to take part.
    pub invites: Option<Invites>,
    /// What a scheduler's variables said, for the log.
    pub recognised: Vec<String>,
    /// Socket of the keeper that started this process, where several hosts keep the ledger.
    pub keeper: Option<String>,
    /// That keeper's number.
    pub keeper_number: u64,
}

/// Why a run did not reach its end. A run directory that exists can be resumed after every one of them.
#[derive(Debug, Error)]
pub enum RunError {
    /// A setting cannot be made to work.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// This host's devices.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// The resolved configuration cannot be written.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The run directory or its ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A run is there already.
    #[error("{} holds a run already; go on with it by --resume {}, or throw it away by --clean", path.display(), path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// Several hosts keep the run, and this launch is not a keeper's.
    #[error(
        "several hosts keep this run (cluster.standby): make it with `cluster launch .. --prepare`, copy its directory to each of them, and \
         start `cluster keep RUN --as N` there, N being its place in cluster.standby.keepers"
    )]
    NotByKeeper,
    /// What is there is no run's.
    #[error(
        "{} is not empty and holds no run: nothing in it is touched; name another directory by --run-dir, or empty it yourself",
        path.display()
    )]
    NotARun {
        /// Where.
        path: PathBuf,
    },
    /// A resumed run would compute differently.
    #[error(
        "run numerics differ: the run was begun with {begun:?}, this build and configuration have {now:?}; \
         resume with the same build and settings, or begin a new run"
    )]
    Numerics {
        /// In the ledger.
        begun: String,
        /// Of this process.
        now: String,
    },
    /// The disk is full before the run has begun.
    #[error("no space left for a run in {}: free some, or choose another disk with --run-dir; nothing was begun", path.display())]
    NoRoom {
        /// The run directory.
        path: PathBuf,
    },
    /// A resume with a setting that is the run's own.
    #[error("{key} is {run} in the run and {given} now: {why}")]
    Changed {
        /// Dotted path.
        key: String,
        /// The run's value.
        run: String,
        /// This launch's.
        given: String,
        /// Why it is refused, and what to do.
        why: &'static str,
    },
    /// The run's configuration is not the one it was begun with.
    #[error(
        "{} is not what the run was begun with: it was changed by hand, or this build has other settings; restore it, or resume \
         with the build that began the run",
        path.display()
    )]
    Edited {
        /// The file.
        path: PathBuf,
    },
    /// The coordinator.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// The node agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A worker of this process failed too often, or cannot run.
    #[error("the run was given up: {why}")]
    GaveUp {
        /// How the program ends.
        exit: Exit,
        /// The first cause.
        why: String,
    },
    /// A worker of this process hangs.
    #[error("the run was given up: {worker} hangs ({why}); a thread cannot be killed: go on with `cluster launch --resume {}`", run.display())]
    Hung {
        /// Who.
        worker: WorkerId,
        /// How that showed.
        why: String,
        /// The run.
        run: PathBuf,
    },
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Makes a run that nobody has begun: its directory, and the authority that its certificates come from.
///
/// # Errors
/// [`RunError`].
pub fn prepare(resolved: &Resolved, options: &LaunchOptions) -> Result<PathBuf, RunError> {
    let prepared = directory::prepare(resolved, options)?;
    let certs = agent::certificates(&prepared.paths);
    RunAuthority::open_or_create(&certs, prepared.run()).map_err(AgentError::from)?;
    Ok(prepared.paths.root().to_owned())
}

/// Trains. Blocks until the run is over, was drained, or cannot go on.
pub fn launch(resolved: &Resolved, options: &LaunchOptions, progress: Arc<dyn ProgressSink>) -> Result<LaunchReport, RunError> {
    let begun = Instant::now();
    let system = |what| move |source| RunError::System { what, source };
    crash::arm_from_env().map_err(|error| RunError::System { what: "arm crash points", source: std::io::Error::other(error) })?;
    let config = Arc::new(resolved.config.clone());
    let cluster = &config.cluster;
    if cluster.standby.is_some() && options.keeper.is_none() {
        return Err(RunError::NotByKeeper);
    }
    let devices = if cluster.processes {
        Assignment::of_run(&config, &cluster.devices, u32::from(cluster.ranks_here()) + u32::from(cluster.rollout))?
    } else {
        Assignment::default()
    };
    let prepared = directory::prepare(resolved, options)?;
    let log = logging::to_run(&config.logging, &prepared.paths).map_err(system("open the log file"))?;
    for line in &options.recognised {
        tracing::info!(target: "cohort::allocation", text = line, "recognised");
        progress.emit(Progress::Notice(line.clone()));
    }
    let wiring = Wiring::open(config.clone(), prepared.run(), prepared.paths.root())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    let report = runtime.block_on(async {
        let shutdown = Shutdown::new();
        // A keeper's child leaves with it.
        if options.keeper.is_some() {
            parent::exit_with_parent(&shutdown)
                .map_err(|error| RunError::System { what: "watch the keeper", source: std::io::Error::other(error) })?;
        }
        let signals = watch_signals(shutdown.clone()).map_err(system("watch signals"))?;
        let report = if config.cluster.processes {
            let (run, paths) = (prepared.run(), prepared.paths.clone());
            let logs = log.parent().unwrap_or(paths.root()).to_owned();
            let (invites, keeper) = (options.invites.clone(), options.keeper.clone());
            let (slots, keeper_number) = (source::RING_SLOTS, options.keeper_number);
            let options = AgentOptions { config, run, paths, logs, slots, invites, devices, keeper, keeper_number };
            agent::run(options, progress, shutdown).await.map_err(RunError::from)
        } else {
            inproc::run(&wiring, &prepared.paths, begun, progress, shutdown).await
        };
        signals.abort();
        report
    });
    // A worker's blocking call that is still under way must not keep the process.
    runtime.shutdown_background();
    let Prepared { lock, .. } = prepared;
    drop(lock);
    report.map(|report| LaunchReport { wall_s: begun.elapsed().as_secs_f64(), ..report })
}

/// R3.
fn watch_signals(shutdown: Shutdown) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(tokio::spawn(async move {
        let mut asked = false;
        loop {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            if asked {
                std::process::exit(i32::from(Exit::Drained as u8));
            }
            asked = true;
            shutdown.trigger(name);
        }
    }))
}
