//! A whole coordinator over the in-process transport, with workers that do no more than the messages ask for.
use super::*;
use crate::controller::{Deadlines, EvaluationPlan, OnFailure};
use crate::ledger::audit;
use crate::progress::Silent;
use cohort_actors::transport::inproc::InprocAddress;
use cohort_actors::{LinkError, LinkOptions, LinkSender, WorkerLink};
use cohort_learner::advantage::rloo::Rloo;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::learner::*;
use cohort_protocol::messages::reward::*;
use cohort_protocol::messages::rollout::*;
use cohort_protocol::score::SampleOutcome;
use cohort_protocol::version::{PROTOCOL, PROTOCOL_MIN};
use cohort_protocol::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

mod staff;
use staff::{Habits, Place, half};

const NUMERICS: &str = "test numerics";
const RUN: RunId = RunId(5);

struct Rows;

impl GroupSource for Rows {
    fn item(&self, _: &Work, cursor: u64) -> SampledItem {
        SampledItem { row: cursor, json: format!("{{\"answer\":{cursor}}}") }
    }
    fn sampling(&self, _: &Work) -> SamplingParams {
        SamplingParams::plain(1.0, 8)
    }
    fn seed(&self) -> u64 {
        1
    }
}

struct Nobody;

impl Replacer for Nobody {
    fn replace(&self, _: WorkerId, _: u32, _: &str) {}
}

fn plan() -> Plan {
    Plan {
        steps: 4,
        groups_per_step: 3,
        group_size: 2,
        max_staleness: 0,
        rollout_workers: 2,
        shared_engine: false,
        slots: 3,
        evaluation: Some(EvaluationPlan { every: 0, prompts: 2, samples: 2, greedy: true }),
        checkpoint_every: 2,
        replay_at_most: None,
        on_failure: OnFailure::Stop,
        max_failures: 3,
        deadlines: Deadlines { retry: Duration::from_millis(1), ..Deadlines::default() },
    }
}

fn id(role: Role, index: u16) -> WorkerId {
    WorkerId { role, index }
}

fn workers() -> Vec<WorkerId> {
    vec![id(Role::Learner, 0), id(Role::Reward, 0), id(Role::Rollout, 0), id(Role::Rollout, 1)]
}

fn args(paths: &RunPaths) -> CoordinatorArgs {
    CoordinatorArgs {
        keeper: None,
        paths: paths.clone(),
        plan: plan(),
        workers: workers(),
        numerics: NUMERICS.into(),
        corrects: false,
        groups: Arc::new(Rows),
        advantage: Arc::new(Rloo),
        progress: Arc::new(Silent),
        replacer: Arc::new(Nobody),
        standing: watch::channel(Standing::default()).1,
        incarnation: 0,
        begun: Instant::now(),
    }
}

fn new_run(dir: &std::path::Path) -> RunPaths {
    let paths = RunPaths::new(dir);
    let meta = RunMeta { run: RUN, numerics: NUMERICS.into(), config_hash: "c".into() };
    drop(Ledger::create(&paths, &meta).unwrap());
    paths
}

fn hello(worker: WorkerId) -> Hello {
    let (pid, numerics) = (std::process::id(), NUMERICS.to_owned());
    Hello { protocol_min: PROTOCOL_MIN, protocol_max: PROTOCOL, run: RUN, worker, pid, incarnation: 0, numerics }
}

fn start(place: &Arc<Place>, args: CoordinatorArgs) -> (Shutdown, JoinHandle<Result<LaunchReport, CoordinatorError>>) {
    let shutdown = Shutdown::new();
    let listener = Arc::new(place.address.listen());
    (shutdown.clone(), tokio::spawn(run(args, listener, shutdown)))
}

fn commits(paths: &RunPaths) -> Vec<(u64, u64)> {
    let past = Ledger::open(paths).unwrap().past().unwrap();
    past.commits.values().map(|c| (c.step.0, c.weights_digest)).collect()
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("the test is stuck")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_from_base_to_summary() {
    let dir = tempfile::tempdir().unwrap();
    let paths = new_run(dir.path());
    let place = Place::new(Habits { bad_batches: 2.into(), bad_scores: 2.into(), ..Habits::default() });
    let staff = place.staff();
    let (_, running) = start(&place, args(&paths));
    let report = within(running).await.unwrap().unwrap();
    assert!(report.finished && report.steps == 4);
    assert_eq!(report.weights_sha256, "ab".repeat(32));
    assert_eq!((report.reward_first5, report.heldout_before, report.heldout_after), (Some(0.25), Some(0.25), Some(0.25)));
    assert_eq!((report.heldout_greedy_before, report.heldout_greedy_after), (Some(0.0), Some(0.0)));
    let rise = report.heldout_rise.unwrap();
    assert!(rise.mean == 0.0 && rise.low == 0.0 && rise.high == 0.0 && rise.prompts > 0, "{rise:?}");
    assert_eq!(report.heldout_parts, [("exact".to_owned(), 0.25, 0.25)]);
    assert_eq!(report.example_before.as_ref().unwrap().turns[1].content, "so much");
    assert_eq!(place.dismissed(staff).await, workers().len(), "everyone was told to leave");

    let accounts = audit(&paths).unwrap();
    assert!(accounts.balanced, "{:?}", accounts.findings);
    assert_eq!((accounts.generated, accounts.consumed, accounts.in_flight), (12, 12, 0));
    let summary: LaunchReport = serde_json::from_slice(&std::fs::read(paths.summary()).unwrap()).unwrap();
    assert_eq!(summary, report);
    let status: crate::progress::RunStatus = serde_json::from_slice(&std::fs::read(paths.status()).unwrap()).unwrap();
    assert_eq!((status.step, status.actors.len(), status.phase), (4, 5, crate::progress::RunPhase::Finished));
    let breakers: Vec<_> = status.actors.iter().filter(|a| !a.breakers.is_empty()).map(|a| (&a.name[..], &a.breakers)).collect();
    assert_eq!(breakers, [("reward-0", &[("judge".to_owned(), "half-open".to_owned())].into())]);
    let metrics = std::fs::read_to_string(paths.metrics()).unwrap();
    assert_eq!(metrics.lines().count(), 4);
    assert!(metrics.contains(COLLECT_S) && metrics.contains(STEP_S));
    assert_eq!(std::fs::read_to_string(paths.evaluations()).unwrap().lines().count(), 4);
}

/// Connections break after half a group.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_worker_handed_in_goes_along_with_the_next_lease() {
    let dir = tempfile::tempdir().unwrap();
    let paths = new_run(dir.path());
    let place = Place::new(Habits { lost: 3.into(), slow: 20, ..Habits::default() });
    let staff = place.staff();
    let (_, running) = start(&place, args(&paths));
    assert!(within(running).await.unwrap().unwrap().finished);
    place.dismissed(staff).await;
    let continued = std::mem::take(&mut *place.habits.continued.lock().unwrap());
    assert!((3..=6).contains(&continued.len()), "{} leases went on from something", continued.len());
    for ContinuedLease { lease, parts } in continued {
        assert!(lease.attempt > AttemptId(1));
        assert_eq!(parts, half(&lease).parts, "what was handed in, and nothing of what left a gap");
    }
    assert!(audit(&paths).unwrap().balanced);
}

/// The coordinator dies again and again, at odd times, without a word; workers live on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_dies_again_and_again_ends_with_the_same_commits() {
    let calm_dir = tempfile::tempdir().unwrap();
    let calm = new_run(calm_dir.path());
    let place = Place::new(Habits::default());
    let staff = place.staff();
    within(start(&place, args(&calm)).1).await.unwrap().unwrap();
    place.dismissed(staff).await;

    let dir = tempfile::tempdir().unwrap();
    let paths = new_run(dir.path());
    let place = Place::new(Habits { slow: 3, ..Habits::default() });
    let staff = place.staff();
    for life in 0..7u64 {
        let (_, running) = start(&place, args(&paths));
        tokio::time::sleep(Duration::from_millis(25 + 35 * life)).await;
        running.abort();
        // Gone with everything that it had not written.
        let _ = running.await;
    }
    let report = within(start(&place, args(&paths)).1).await.unwrap().unwrap();
    place.dismissed(staff).await;
    assert!(report.finished);
    assert_eq!(commits(&paths), commits(&calm));
    let accounts = audit(&paths).unwrap();
    assert!(accounts.balanced, "{:?}", accounts.findings);
    assert_eq!((accounts.generated, accounts.consumed), (12, 12));
    assert_eq!(std::fs::read_to_string(paths.metrics()).unwrap().lines().count(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_run_says_so_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let paths = new_run(dir.path());
    let place = Place::new(Habits { slow: 40, ..Habits::default() });
    let staff = place.staff();
    let (shutdown, running) = start(&place, args(&paths));
    tokio::time::sleep(Duration::from_millis(400)).await;
    shutdown.trigger("SIGTERM");
    let report = within(running).await.unwrap().unwrap();
    place.dismissed(staff).await;
    assert!(audit(&paths).unwrap().balanced);
    if report.steps < 4 {
        assert!(!report.finished);
    }
    let place = Place::new(Habits::default());
    let staff = place.staff();
    let report = within(start(&place, args(&paths)).1).await.unwrap().unwrap();
    place.dismissed(staff).await;
    assert!(report.finished && report.steps == 4);
    assert!(audit(&paths).unwrap().balanced);
}

#[test]
fn the_weights_of_a_drained_run_are_those_of_its_last_checkpoint() {
    use cohort_learner::checkpoint::{OptimizerState, TrainState, save};
    let dir = tempfile::tempdir().unwrap();
    let paths = RunPaths::new(dir.path());
    let model = cohort_model::ModelFiles::open("random://tiny?seed=1").unwrap();
    let weights = model.weights().unwrap();
    let optimizer = OptimizerState::new(weights.clone(), weights.clone(), 1);
    let (version, sha256) = (PolicyVersion(3), weights.sha256());
    let state = TrainState { version, weights, optimizer, seed: 1, cursor_json: "{}".into() };
    save(paths.root(), &model, &state, 2).unwrap();
    assert_eq!(saved_sha256(&paths, version), sha256);
    assert_eq!(saved_sha256(&paths, PolicyVersion(4)), "");
}

/// A ledger that refuses is no end of the run: the workers stay for the next coordinator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_fails_keeps_its_workers() {
    let dir = tempfile::tempdir().unwrap();
    let paths = new_run(dir.path());
    let place = Place::new(Habits::default());
    let staff = place.staff();
    let ledger = rusqlite::Connection::open(paths.ledger()).unwrap();
    ledger.execute_batch("CREATE TRIGGER full BEFORE INSERT ON commits BEGIN SELECT RAISE(ABORT, 'no room'); END").unwrap();
    let error = within(start(&place, args(&paths)).1).await.unwrap().unwrap_err();
    assert!(matches!(&error, CoordinatorError::Ledger(_)) && error.to_string().contains("no room"), "{error}");
    ledger.execute_batch("DROP TRIGGER full").unwrap();
    let report = within(start(&place, args(&paths)).1).await.unwrap().unwrap();
    assert!(report.finished);
    assert_eq!(place.dismissed(staff).await, workers().len(), "the same workers served both");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_differences_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let paths = new_run(dir.path());
    let place = Place::new(Habits { bad_scores: 1000.into(), ..Habits::default() });
    let staff = place.staff();
    let other = CoordinatorArgs { numerics: "other numerics".into(), ..args(&paths) };
    let error = within(start(&place, other).1).await.unwrap().unwrap_err().to_string();
    assert!(error.contains(NUMERICS) && error.contains("other numerics"), "{error}");
    let error = within(start(&place, args(&paths)).1).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("judge: 503") && error.contains("--resume"), "{error}");
    place.dismissed(staff).await;
    assert!(audit(&paths).unwrap().balanced);
    // A worker that is not of this run is told why.
    let place = Place::new(Habits::default());
    let (shutdown, running) = start(&place, args(&paths));
    let stranger: Result<WorkerLink<CoordinatorToLearner, LearnerToCoordinator>, _> = place.link(id(Role::Learner, 9)).await;
    let Err(why) = stranger else { panic!("a stranger was welcomed") };
    let why = why.to_string();
    assert!(why.contains("no learner-9"), "{why}");
    shutdown.trigger("done");
    within(running).await.unwrap().unwrap();
}
