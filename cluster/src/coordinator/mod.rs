//! The coordinator: listens, keeps the ledger, drives the controller, reports. It decides nothing (`controller` does),
//! computes nothing (workers do) and never forks (the node agent does).
//!
//! Files: `session` one connection; `actor` the one task that moves everything; `journal` the ledger's thread; `payload`
//! checks and digests; `partials` groups that are not complete; `report`, `news` and `exports` what people and programs see; `full_disk` what they hear of a disk without room; `predecessor` what an earlier one of the launch said; `error`.
mod actor;
mod error;
mod exports;
mod full_disk;
mod journal;
mod news;
pub mod partials;
pub mod payload;
mod predecessor;
mod report;
mod rise;
mod session;

pub use error::CoordinatorError;
pub(crate) use payload::group_payload;
pub(crate) use report::LEARNER_IDLE;
pub use report::{COLLECT_S, SAMPLED_TOKENS, STEP_S, TRAINED_TOKENS};

use self::actor::{Core, Told};
use self::exports::Exports;
use self::journal::Journal;
use self::news::News;
use self::predecessor::Predecessor;
use self::report::Report;
use crate::controller::{ConnId, ControllerState, Outcome, Plan, Standing, Work};
use crate::ledger::place::write_atomically;
use crate::ledger::replica::KeptLedger;
use crate::ledger::{Accounts, Ledger, LedgerError, RunLock, RunMeta, RunPaths};
use crate::progress::{LaunchReport, Progress, ProgressSink};
use cohort_actors::{AcceptTerms, Connection, Listener, Shutdown, accept_worker, wall};
use cohort_learner::advantage::Advantage;
use cohort_protocol::{Role, SampledItem, SamplingParams, WorkerId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// What sessions and helpers have said and the core has not read; when it is full they wait.
const INPUTS: usize = 1024;
/// Time that a coordinator whose run was asked to stop has for ending in order; then it leaves as it is. The node agent
/// gives the coordinator's process as long.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// For `Hello` after a connection.
const HELLO: Duration = Duration::from_secs(5);
/// How long a coordinator that is on its way out may keep the ledger.
const LEDGER_PATIENCE: Duration = Duration::from_secs(10);

/// Where leases get their contents.
pub trait GroupSource: Send + Sync {
    /// The data row of a group: training rows by cursor, held-out rows by prompt number.
    fn item(&self, work: &Work, cursor: u64) -> SampledItem;
    /// How its tokens are drawn.
    fn sampling(&self, work: &Work) -> SamplingParams;
    /// Key of every random draw of the run.
    fn seed(&self) -> u64;
}

/// Whoever can replace a worker that is connected and does not move.
pub trait Replacer: Send + Sync {
    /// Kills the worker's process; its supervisor starts another. Must not block.
    fn replace(&self, worker: WorkerId, pid: u32, why: &str);
}

/// What a coordinator is started with.
pub struct CoordinatorArgs {
    /// The run; its ledger exists.
    pub paths: RunPaths,
    /// Socket of this host's keeper, where several hosts keep the ledger.
    pub keeper: Option<String>,
    /// What the run is to do.
    pub plan: Plan,
    /// Workers that the run begins with. Rollout and reward workers may come and go; any other is refused.
    pub workers: Vec<WorkerId>,
    /// Everything that decides bits, one line; must be the run's.
    pub numerics: String,
    /// Rollout workers with other numerics are let in, and what they sample counts as inexact.
    pub corrects: bool,
    /// Where leases get their contents.
    pub groups: Arc<dyn GroupSource>,
    /// From rewards to advantages.
    pub advantage: Arc<dyn Advantage>,
    /// Who wants to know.
    pub progress: Arc<dyn ProgressSink>,
    /// Who replaces hung workers.
    pub replacer: Arc<dyn Replacer>,
    /// What the agent says, from now on; never changes where there is none.
    pub standing: watch::Receiver<Standing>,
    /// Which start of the coordinator in this launch, from 0.
    pub incarnation: u32,
    /// When the launch began; where there was an earlier coordinator, that knows better.
    pub begun: Instant,
}

/// Runs a coordinator until the run is over or `shutdown` makes it drain. `summary.json` is written at the end.
///
/// Errors: [`CoordinatorError`]; the run can be resumed after every one of them.
pub async fn run(
    args: CoordinatorArgs,
    listener: Arc<dyn Listener>,
    shutdown: Shutdown,
) -> Result<LaunchReport, CoordinatorError> {
    let args = Arc::new(args);
    let (lock, meta, past, epoch, ledger) = full_disk::patiently(&args, &shutdown, || open_ledger(args.clone())).await?;
    let predecessor = Predecessor::of(&args);
    let launched = predecessor.as_ref().and_then(|p| args.begun.checked_sub(p.launched(wall::unix_ms())));
    let mut report = Report::new(args.plan.steps, launched.unwrap_or(args.begun), Instant::now(), &past, args.workers.clone());
    let workers = predecessor.map(|p| p.workers()).unwrap_or_default();
    let known: Vec<(WorkerId, u32)> = workers.iter().map(|(worker, _, pid)| (*worker, *pid)).collect();
    workers.into_iter().for_each(|(worker, starts, pid)| report.seen(worker, starts, pid));
    let exports =
        Exports::start(args.paths.clone(), &past).map_err(|e| LedgerError::io("start a thread for", args.paths.root(), e))?;
    // Bounded by the records that wait for the journal, whose queue is, and by one look a second at a full disk.
    let (written_tx, written) = mpsc::unbounded_channel();
    let (journal, journal_thread) = Journal::start(ledger, lock, move |news| {
        // A core that has ended needs no news.
        let _ = written_tx.send(news);
    })
    .map_err(|e| LedgerError::io("start a thread for", args.paths.root(), e))?;
    let news = News::start(args.progress.clone()).map_err(|e| LedgerError::io("start a thread for", args.paths.root(), e))?;
    news.emit(Progress::Started { run_dir: args.paths.root().to_owned(), resumed_at: past.committed(), steps: args.plan.steps });
    let state = ControllerState::new(args.plan.clone(), epoch, past);
    let (inputs, mut inbox) = mpsc::channel(INPUTS);
    let terms = AcceptTerms {
        run: meta.run,
        epoch,
        numerics: meta.numerics,
        corrects: args.corrects,
        deadline: HELLO,
        roles: AcceptTerms::WORKERS,
    };
    let accepting = tokio::spawn(accept_all(listener, terms, args.workers.clone(), inputs.clone()));
    let mut core = Core::new(args.clone(), state, report, journal, Told { exports, news }, inputs);
    core.begin(known).await;
    let result = core.run(&mut inbox, written, &shutdown).await;
    match &result {
        Ok(Outcome::Finished) => core.dismiss("the run is finished", inbox).await,
        Ok(Outcome::Drained) => core.dismiss("the run was asked to stop", inbox).await,
        Ok(Outcome::Failed { error, .. }) => core.dismiss(&format!("the run has failed: {error}"), inbox).await,
        // The run may go on with the next coordinator: workers stay and look for it.
        Err(error) => core.disconnect(&format!("the coordinator has failed: {error}")),
    }
    // Not before: the sessions carry the farewell out and the workers' answer in.
    accepting.abort();
    conclude(&args, core, result, journal_thread).await
}

type Opened = (RunLock, RunMeta, crate::ledger::Past, cohort_protocol::Epoch, Box<dyn Accounts>);

async fn open_ledger(args: Arc<CoordinatorArgs>) -> Result<Opened, CoordinatorError> {
    let opened = tokio::task::spawn_blocking(move || {
        let lock = RunLock::take(&args.paths.ledger_lock(), LEDGER_PATIENCE)?;
        let mut ledger: Box<dyn Accounts> = match &args.keeper {
            Some(socket) => Box::new(KeptLedger::connect(&args.paths, socket)?),
            None => Box::new(Ledger::open(&args.paths)?),
        };
        let meta = ledger.reader().meta()?;
        if meta.numerics != args.numerics {
            return Err(CoordinatorError::Numerics { begun: meta.numerics, now: args.numerics.clone() });
        }
        let epoch = ledger.begin_epoch(wall::unix_ms())?;
        let past = ledger.reader().past()?;
        Ok((lock, meta, past, epoch, ledger))
    });
    opened.await.map_err(|_| CoordinatorError::Internal("opening of the ledger"))?
}

async fn conclude(
    args: &CoordinatorArgs,
    mut core: Core,
    result: Result<Outcome, CoordinatorError>,
    journal: std::thread::JoinHandle<()>,
) -> Result<LaunchReport, CoordinatorError> {
    core.final_status();
    let finished = matches!(result, Ok(Outcome::Finished));
    let mut summary = core.report.summary(Instant::now(), &args.paths, &core.state, finished, args.incarnation);
    let Core { journal: handle, told: Told { exports, news }, tasks, .. } = core;
    drop((handle, tasks));
    news.finish().await;
    let (paths, last) = (args.paths.clone(), cohort_protocol::PolicyVersion(summary.steps));
    let written = tokio::task::spawn_blocking(move || {
        // Both end when their queues are dropped; a panic of theirs is in the log.
        let _ = exports.finish().join();
        let _ = journal.join();
        if summary.weights_sha256.is_empty() {
            summary.weights_sha256 = saved_sha256(&paths, last);
        }
        let bytes = serde_json::to_vec_pretty(&summary).unwrap_or_default();
        write_atomically(&paths.summary(), &bytes).map(|()| summary)
    });
    let summary = written.await.map_err(|_| CoordinatorError::Internal("writing of the summary"))?;
    match result? {
        Outcome::Failed { error, fault } => Err(CoordinatorError::RunFailed { error, fault }),
        Outcome::Finished | Outcome::Drained => Ok(summary?),
    }
}

/// Of the weights in a version's checkpoint; empty where there is none that verifies.
fn saved_sha256(paths: &RunPaths, version: cohort_protocol::PolicyVersion) -> String {
    let dir = paths.checkpoints().join(cohort_learner::checkpoint::dir_name(version));
    cohort_learner::checkpoint::hash(&dir).map(|h| h.weights).unwrap_or_default()
}

/// Welcomes workers, each in a task of its own, until it is aborted.
async fn accept_all(
    listener: Arc<dyn Listener>,
    terms: AcceptTerms,
    workers: Vec<WorkerId>,
    inputs: mpsc::Sender<session::Input>,
) {
    let (terms, workers) = (Arc::new(terms), Arc::new(workers));
    let mut sessions = JoinSet::new();
    let mut next = 0u64;
    loop {
        while sessions.try_join_next().is_some() {}
        let connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::error!(target: "cohort::coordinator", %error, "listener_lost");
                return;
            }
        };
        next += 1;
        sessions.spawn(welcome(ConnId(next), connection, terms.clone(), workers.clone(), inputs.clone()));
    }
}

async fn welcome(
    conn: ConnId,
    connection: Arc<dyn Connection>,
    terms: Arc<AcceptTerms>,
    workers: Arc<Vec<WorkerId>>,
    inputs: mpsc::Sender<session::Input>,
) {
    let admitted = accept_worker(connection, &terms, |hello| {
        let movable = matches!(hello.worker.role, Role::Rollout | Role::Reward);
        let known = movable || workers.contains(&hello.worker);
        known.then_some(()).ok_or_else(|| format!("this run has no {}; it was started with another configuration", hello.worker))
    });
    match admitted.await {
        Ok(admitted) => session::serve(conn, admitted, inputs).await,
        Err(error) => tracing::warn!(target: "cohort::coordinator", %error, "not_welcomed"),
    }
}

#[cfg(test)]
mod tests;
