//! A whole run in this process: the coordinator and every worker over the in-process transport, workers under a
//! supervisor, one engine for all of them.
//!
//! | child | failure | action | lost |
//! |---|---|---|---|
//! | any worker | panic or error | restarted with backoff; its work is leased again | what it had in hand |
//! | any worker | more than 20 failures in 60 s | the run ends, naming the first cause | nothing committed |
//! | any worker | refused, or cannot be made | the run ends at once, naming the cause | nothing committed |
//! | any worker | hangs ([`super::hangs`]) | the run ends, naming it; `--resume` goes on | nothing committed |
//! | the coordinator | error | the run ends; `--resume` goes on | nothing committed |
use super::RunError;
use super::failure::Failure;
use super::hangs::Hangs;
use super::source::{RING_SLOTS, Surroundings, coordinator_args};
use super::wiring::Wiring;
use crate::cli::Exit;
use crate::controller::Standing;
use crate::coordinator::{self, Replacer};
use crate::http::{self, HttpOptions, Pulse};
use crate::ledger::RunPaths;
use crate::progress::{LaunchReport, Progress, ProgressSink};
use async_trait::async_trait;
use cohort_actors::supervision::actor::{ChildFactory, ChildSpec, Fatal, SupervisorActor, SupervisorArgs};
use cohort_actors::transport::{Deadlines, Listener, inproc};
use cohort_actors::{ChildId, Dialer, Escalation, Restart, Shutdown, SupervisionPolicy};
use cohort_engine::{EngineHandle, HeldRing, WeightRing};
use cohort_learner::Rendezvous;
use cohort_protocol::{Role, WorkerId};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
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
    let (hung, mut hangs) = mpsc::channel(1);
    let watch = Arc::new(Watch { hangs: Mutex::default(), hung, progress });
    // One process is told to stop by signals, and nothing else.
    let (_orders, standing) = tokio::sync::watch::channel(Standing::default());
    let around = Surroundings { shared_engine: true, progress: watch.clone(), replacer: watch, standing, keeper: None, begun };
    let args = coordinator_args(wiring, paths, around)?;
    let serving = match HttpOptions::of(&wiring.config.cluster) {
        Some(options) => {
            let ready = http::coordinator_speaks(paths.clone());
            let served = http::serve(&options, paths.clone(), Pulse::of_runtime(), ready).await;
            Some(served.map_err(|source| RunError::System { what: "serve cluster.http", source })?.1)
        }
        None => None,
    };
    let (listener, dialer) = inproc::pair("coordinator");
    let place = Arc::new(Place {
        wiring: wiring.clone(),
        engine: wiring.engine()?,
        ring: Arc::new(HeldRing::new(RING_SLOTS)),
        dialer: Arc::new(dialer),
        ranks: Meeting(inproc::InprocAddress::new("learner-0", Deadlines::default())),
        shutdown: Shutdown::new(),
        exits: Mutex::default(),
    });
    let children = super::source::workers(&wiring.config).into_iter().map(|who| ChildSpec {
        id: ChildId::from(who.to_string()),
        restart: Restart::Transient,
        factory: Arc::new(Worker { who, place: place.clone() }) as Arc<dyn ChildFactory>,
    });
    let supervisor =
        SupervisorArgs { policy: SupervisionPolicy::default(), seed: wiring.run.0, grace: GRACE, children: children.collect() };
    let (tell, root_ended) = oneshot::channel();
    let started = Actor::spawn(None, Root, (supervisor, tell)).await;
    let (root, _) = started.map_err(|e| given_up(format!("the supervisor did not start: {e}")))?;
    let mut coordinator = tokio::spawn(coordinator::run(args, Arc::new(listener), shutdown));
    let report = tokio::select! {
        report = &mut coordinator => report.map_err(|e| RunError::System { what: "run the coordinator", source: std::io::Error::other(e) })?,
        escalation = root_ended => {
            coordinator.abort();
            return Err(escalation.map_or_else(|_| given_up("the workers' supervisor has ended".into()), |e| place.gave_up(&e)));
        }
        Some((worker, why)) = hangs.recv() => {
            coordinator.abort();
            return Err(RunError::Hung { worker, why, run: paths.root().to_owned() });
        }
    };
    serving.inspect(tokio::task::JoinHandle::abort);
    place.shutdown.trigger("the run is over");
    root.stop(None);
    Ok(report?)
}

fn given_up(why: String) -> RunError {
    RunError::GaveUp { exit: Exit::WorkerGaveUp, why }
}

/// Above the supervisor: hears with what it failed.
struct Root;

impl Actor for Root {
    type Msg = ();
    type State = Option<oneshot::Sender<Escalation>>;
    type Arguments = (SupervisorArgs, oneshot::Sender<Escalation>);

    async fn pre_start(&self, myself: ActorRef<()>, (args, tell): Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        Actor::spawn_linked(None, SupervisorActor, args, myself.get_cell()).await?;
        Ok(Some(tell))
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        tell: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(_, error) => {
                if let (Ok(escalation), Some(tell)) = (error.downcast::<Escalation>(), tell.take()) {
                    // A run that is over does not listen.
                    let _ = tell.send(*escalation);
                }
                myself.stop(None);
            }
            SupervisionEvent::ActorTerminated(..) => myself.stop(None),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}

/// What every worker shares.
struct Place {
    wiring: Wiring,
    engine: EngineHandle,
    ring: Arc<dyn WeightRing>,
    dialer: Arc<dyn Dialer>,
    ranks: Meeting,
    shutdown: Shutdown,
    /// How the launch would end by each worker's last failure.
    exits: Mutex<HashMap<ChildId, Exit>>,
}

impl Place {
    /// One worker's whole life.
    async fn live(self: Arc<Self>, who: WorkerId, incarnation: u32) -> Result<(), Failure> {
        let (engine, ring, dialer, shutdown) =
            (self.engine.clone(), self.ring.clone(), self.dialer.clone(), self.shutdown.child());
        match who.role {
            Role::Rollout => {
                let mut args = self.wiring.rollout(who.index, engine, ring)?;
                args.hello.incarnation = incarnation;
                Ok(cohort_rollout::run_worker(args, dialer, shutdown).await?)
            }
            Role::Reward => {
                let mut args = self.wiring.reward(who.index)?;
                args.hello.incarnation = incarnation;
                Ok(cohort_reward_workers::run_worker(args, dialer, shutdown).await?)
            }
            Role::Learner => {
                // The lead shares the rollout workers' engine; every follower has its own weights to keep.
                let engine = if who.is_lead() { engine } else { self.wiring.engine()? };
                let mut args = self.wiring.learner(who.index, engine, ring, Arc::new(self.ranks.clone()))?;
                args.hello.incarnation = incarnation;
                Ok(cohort_learner::run_worker(args, dialer, shutdown).await?)
            }
            Role::Coordinator | Role::Node | Role::Keeper => Ok(()),
        }
    }

    /// The run's end by an escalation.
    fn gave_up(&self, escalation: &Escalation) -> RunError {
        let exit = match escalation {
            Escalation::Fatal { child, .. } => self.exits.lock().unwrap_or_else(PoisonError::into_inner).get(child).copied(),
            Escalation::TooManyRestarts { .. } => None,
        };
        RunError::GaveUp { exit: exit.unwrap_or(Exit::WorkerGaveUp), why: escalation.to_string() }
    }
}

/// Where learner ranks meet in this process.
#[derive(Debug, Clone)]
struct Meeting(inproc::InprocAddress);

impl Rendezvous for Meeting {
    fn listen(&self) -> Result<(Arc<dyn Listener>, String), String> {
        Ok((Arc::new(self.0.listen()), "learner-0".to_owned()))
    }

    fn dialer(&self, _: &str) -> Result<Arc<dyn Dialer>, String> {
        Ok(Arc::new(self.0.dialer()))
    }
}

/// Looks out for hung workers among the news, which it passes on.
struct Watch {
    hangs: Mutex<Hangs>,
    /// Holds one: the first ends the run.
    hung: mpsc::Sender<(WorkerId, String)>,
    progress: Arc<dyn ProgressSink>,
}

impl Watch {
    fn end(&self, worker: WorkerId, why: String) {
        tracing::error!(target: "cohort::coordinator", %worker, why, "worker_hangs");
        // A full channel has ended the run already.
        let _ = self.hung.try_send((worker, why));
    }
}

impl Replacer for Watch {
    fn replace(&self, worker: WorkerId, _: u32, why: &str) {
        let given_up = self.hangs.lock().unwrap_or_else(PoisonError::into_inner).given_up(Instant::now(), worker, why);
        if let Some(why) = given_up {
            self.end(worker, why);
        }
    }
}

impl ProgressSink for Watch {
    fn emit(&self, news: Progress) {
        if let Progress::Actors(actors) = &news {
            let hung = self.hangs.lock().unwrap_or_else(PoisonError::into_inner).seen(Instant::now(), actors);
            if let Some((worker, why)) = hung {
                self.end(worker, why);
            }
        }
        self.progress.emit(news);
    }
}

/// A worker as an actor: a failure of its task is a failure of the actor.
struct WorkerActor;

enum WorkerMsg {
    /// The task ended.
    Ended(Result<(), Failure>),
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
        let task = tokio::spawn(place.clone().live(who, incarnation));
        let handle = task.abort_handle();
        tokio::spawn(async move {
            let ended = task.await.unwrap_or_else(|e| Err(Failure::passing(format!("it panicked: {e}"))));
            if let Err(failure) = &ended {
                let mut exits = place.exits.lock().unwrap_or_else(PoisonError::into_inner);
                exits.insert(ChildId::from(who.to_string()), failure.exit);
            }
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
            WorkerMsg::Ended(Err(failure)) if failure.lasting => Err(Fatal(failure.message).into()),
            WorkerMsg::Ended(Err(failure)) => Err(failure.message.into()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Fails at every start, lastingly or not.
    struct Broken(bool, AtomicU32);

    #[async_trait]
    impl ChildFactory for Broken {
        async fn spawn(&self, _: ActorCell, _: u32) -> Result<ActorCell, ActorProcessingErr> {
            let cause = format!("cause {}", self.1.fetch_add(1, Ordering::Relaxed));
            Err(if self.0 { Fatal(cause).into() } else { cause.into() })
        }
    }

    async fn escalation(lasting: bool) -> String {
        let factory = Arc::new(Broken(lasting, AtomicU32::new(0)));
        let child = ChildSpec { id: ChildId::from("rollout-0"), restart: Restart::Transient, factory };
        let policy = SupervisionPolicy { max_restarts: 2, ..SupervisionPolicy::default() };
        let args = SupervisorArgs { policy, seed: 1, grace: GRACE, children: vec![child] };
        let (tell, told) = oneshot::channel();
        Actor::spawn(None, Root, (args, tell)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), told).await.unwrap().unwrap().to_string()
    }

    #[tokio::test]
    async fn the_end_of_the_workers_names_the_first_cause() {
        let why = escalation(false).await;
        assert!(why.contains("first cause: rollout-0: could not start: cause 0"), "{why}");
        assert_eq!(escalation(true).await, "rollout-0 cannot run: cause 0");
    }
}
