//! A whole run in this process: the coordinator and every worker over the in-process transport, workers under a
//! supervisor, one engine for all of them.
//!
//! | child | failure | action | lost |
//! |---|---|---|---|
//! | any worker | panic or error | restarted with backoff; its work is leased again | what it had in hand |
//! | any worker | more than 20 failures in 60 s | the run ends, naming the first cause | nothing committed |
//! | the coordinator | error | the run ends; `--resume` goes on | nothing committed |
use super::RunError;
use super::source::{RING_SLOTS, Surroundings, coordinator_args};
use super::wiring::{Wiring, WiringError};
use crate::coordinator::{self, Replacer};
use crate::ledger::RunPaths;
use crate::progress::{LaunchReport, ProgressSink};
use async_trait::async_trait;
use cohort_actors::supervision::actor::{ChildFactory, ChildSpec, SupervisorActor, SupervisorArgs};
use cohort_actors::transport::inproc;
use cohort_actors::{ChildId, Dialer, Restart, Shutdown, SupervisionPolicy};
use cohort_engine::{EngineHandle, LocalRing, WeightRing};
use cohort_protocol::{Role, WorkerId};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;

/// Time a worker has to leave after the run.
const GRACE: Duration = Duration::from_secs(3);

pub(super) async fn run(
    wiring: &Wiring,
    paths: &RunPaths,
    begun: Instant,
    progress: Arc<dyn ProgressSink>,
    shutdown: Shutdown,
) -> Result<LaunchReport, RunError> {
    let around = Surroundings { shared_engine: true, progress, replacer: Arc::new(Nobody), begun };
    let args = coordinator_args(wiring, paths, around)?;
    let (listener, dialer) = inproc::pair("coordinator");
    let place = Arc::new(Place {
        wiring: wiring.clone(),
        engine: wiring.engine()?,
        ring: Arc::new(LocalRing::new(RING_SLOTS)),
        dialer: Arc::new(dialer),
        shutdown: Shutdown::new(),
    });
    let children = super::source::workers(&wiring.config).into_iter().map(|who| ChildSpec {
        id: ChildId::from(who.to_string()),
        restart: Restart::Transient,
        factory: Arc::new(Worker { who, place: place.clone() }) as Arc<dyn ChildFactory>,
    });
    let supervisor =
        SupervisorArgs { policy: SupervisionPolicy::default(), seed: wiring.run.0, grace: GRACE, children: children.collect() };
    let (root, mut root_ended) = Actor::spawn(None, SupervisorActor, supervisor)
        .await
        .map_err(|e| RunError::GaveUp(format!("the supervisor did not start: {e}")))?;
    let mut coordinator = tokio::spawn(coordinator::run(args, Arc::new(listener), shutdown));
    let report = tokio::select! {
        report = &mut coordinator => report.map_err(|e| RunError::System { what: "run the coordinator", source: std::io::Error::other(e) })?,
        _ = &mut root_ended => {
            coordinator.abort();
            return Err(RunError::GaveUp("a worker failed too often; the log names the first cause".into()));
        }
    };
    place.shutdown.trigger("the run is over");
    root.stop(None);
    Ok(report?)
}

/// What every worker shares.
struct Place {
    wiring: Wiring,
    engine: EngineHandle,
    ring: Arc<dyn WeightRing>,
    dialer: Arc<dyn Dialer>,
    shutdown: Shutdown,
}

impl Place {
    /// One worker's whole life.
    async fn live(self: Arc<Self>, who: WorkerId, incarnation: u32) -> Result<(), String> {
        let (engine, ring, dialer, shutdown) =
            (self.engine.clone(), self.ring.clone(), self.dialer.clone(), self.shutdown.child());
        let wired = |e: WiringError| e.to_string();
        match who.role {
            Role::Rollout => {
                let mut args = self.wiring.rollout(who.index, engine, ring).map_err(wired)?;
                args.hello.incarnation = incarnation;
                cohort_rollout::run_worker(args, dialer, shutdown).await.map_err(|e| e.to_string())
            }
            Role::Reward => {
                let mut args = self.wiring.reward(who.index).map_err(wired)?;
                args.hello.incarnation = incarnation;
                cohort_reward_workers::run_worker(args, dialer, shutdown).await.map_err(|e| e.to_string())
            }
            Role::Learner => {
                let mut args = self.wiring.learner(engine, ring).map_err(wired)?;
                args.hello.incarnation = incarnation;
                cohort_learner::run_worker(args, dialer, shutdown).await.map_err(|e| e.to_string())
            }
            Role::Coordinator => Ok(()),
        }
    }
}

/// Threads cannot be killed: a hung worker of this process is found, named, and waited for.
struct Nobody;

impl Replacer for Nobody {
    fn replace(&self, worker: WorkerId, why: &str) {
        tracing::error!(target: "cohort::coordinator", %worker, why, "worker_hangs_in_process");
    }
}

/// A worker as an actor: a failure of its task is a failure of the actor.
struct WorkerActor;

enum WorkerMsg {
    /// The task ended.
    Ended(Result<(), String>),
}

/// Its task, which ends with it.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Actor for WorkerActor {
    type Msg = WorkerMsg;
    type State = Running;
    type Arguments = (Arc<Place>, WorkerId, u32);

    async fn pre_start(&self, myself: ActorRef<WorkerMsg>, args: Self::Arguments) -> Result<Running, ActorProcessingErr> {
        let (place, who, incarnation) = args;
        let task = tokio::spawn(place.live(who, incarnation));
        let handle = task.abort_handle();
        tokio::spawn(async move {
            let ended = task.await.unwrap_or_else(|e| Err(format!("it panicked: {e}")));
            // An actor that was stopped is not interested.
            let _ = myself.cast(WorkerMsg::Ended(ended));
        });
        Ok(Running(handle))
    }

    async fn handle(&self, myself: ActorRef<WorkerMsg>, msg: WorkerMsg, _: &mut Running) -> Result<(), ActorProcessingErr> {
        match msg {
            WorkerMsg::Ended(Ok(())) => {
                myself.stop(None);
                Ok(())
            }
            WorkerMsg::Ended(Err(why)) => Err(why.into()),
        }
    }
}

struct Worker {
    who: WorkerId,
    place: Arc<Place>,
}

#[async_trait]
impl ChildFactory for Worker {
    async fn spawn(&self, supervisor: ActorCell, incarnation: u32) -> Result<ActorCell, ActorProcessingErr> {
        let (actor, _) = Actor::spawn_linked(None, WorkerActor, (self.place.clone(), self.who, incarnation), supervisor).await?;
        Ok(actor.get_cell())
    }
}
