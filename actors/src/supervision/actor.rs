//! A ractor actor that supervises ractor actors. ractor itself links actors and reports their ends, and by default stops
//! the supervisor when a child ends; restarts, their limits and their order come from [`SupervisionState`].
//!
//! | child | failure | action | lost |
//! |---|---|---|---|
//! | any added by [`SupervisorMsg::Add`] | panic, error, kill, failed start | as the policy says | its mailbox and its state |
//! | any | error of type [`Fatal`] | no restart: the supervisor fails with it | the same |
//! | the supervisor | budget spent | it fails with the [`Escalation`]; ractor kills its children; its own supervisor decides | the children |
use super::state::{ChildId, Command, Escalation, Event, Exit, Restart, SupervisionPolicy, SupervisionState};
use async_trait::async_trait;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tracing::{info, warn};

/// What the supervisor can be told. Its mailbox holds a handful: administration, timers and ends of children.
#[derive(Debug)]
pub enum SupervisorMsg {
    /// Supervise and start one more child. A name that is in use is ignored.
    Add(ChildSpec),
    /// Stop a child and forget it.
    Remove(ChildId),
    /// The running actor of that name, if any.
    Lookup(ChildId, RpcReplyPort<Option<ActorCell>>),
    /// All children.
    Status(RpcReplyPort<Vec<ChildStatus>>),
    /// Stop all children in reverse order, then the supervisor.
    Stop,
    /// A timer fired.
    Tick,
    /// A child had its time to stop.
    Kill(ActorId),
}

/// A child and how to start it, again and again.
#[derive(Clone)]
pub struct ChildSpec {
    /// Its name within this supervisor.
    pub id: ChildId,
    /// When it is restarted.
    pub restart: Restart,
    /// How it is started.
    pub factory: Arc<dyn ChildFactory>,
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec").field("id", &self.id).field("restart", &self.restart).finish_non_exhaustive()
    }
}

/// Starts a child.
#[async_trait]
pub trait ChildFactory: Send + Sync {
    /// Spawns the actor linked to `supervisor` (`Actor::spawn_linked`); `incarnation` counts its starts from 0.
    async fn spawn(&self, supervisor: ActorCell, incarnation: u32) -> Result<ActorCell, ActorProcessingErr>;
}

/// An actor that fails with this error is not restarted: the supervisor escalates at once.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Fatal(pub String);

/// A child as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildStatus {
    /// Its name.
    pub id: ChildId,
    /// running, stopping, waiting or ended.
    pub phase: &'static str,
    /// Restarts so far.
    pub restarts: u32,
    /// Why it ended last.
    pub last_cause: Option<String>,
}

/// How a supervisor works.
#[derive(Debug)]
pub struct SupervisorArgs {
    /// Limits and strategy.
    pub policy: SupervisionPolicy,
    /// Of the jitter.
    pub seed: u64,
    /// Time that a child told to stop has before it is killed.
    pub grace: Duration,
    /// First children, in order.
    pub children: Vec<ChildSpec>,
}

/// Memory of a running supervisor.
#[derive(Debug)]
pub struct SupervisorState {
    decisions: SupervisionState,
    grace: Duration,
    specs: HashMap<ChildId, ChildSpec>,
    running: HashMap<ActorId, (ChildId, ActorCell)>,
    causes: HashMap<ChildId, String>,
    /// The timer that is set.
    armed: Option<Instant>,
    stopping: bool,
}

/// The actor.
#[derive(Debug, Clone, Copy, Default)]
pub struct SupervisorActor;

impl Actor for SupervisorActor {
    type Msg = SupervisorMsg;
    type State = SupervisorState;
    type Arguments = SupervisorArgs;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, args: Self::Arguments) -> Result<Self::State, ActorProcessingErr> {
        for child in args.children {
            myself.send_message(SupervisorMsg::Add(child))?;
        }
        Ok(SupervisorState {
            decisions: SupervisionState::new(args.policy, args.seed),
            grace: args.grace,
            specs: HashMap::new(),
            running: HashMap::new(),
            causes: HashMap::new(),
            armed: None,
            stopping: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMsg::Add(spec) => state.on_add(&myself, spec).await,
            SupervisorMsg::Remove(child) => state.on_event(&myself, Event::Remove(child)).await,
            SupervisorMsg::Lookup(child, reply) => state.on_lookup(&child, reply),
            SupervisorMsg::Status(reply) => state.on_status(reply),
            SupervisorMsg::Stop => state.on_stop(&myself).await,
            SupervisorMsg::Tick => state.on_tick(&myself).await,
            SupervisorMsg::Kill(actor) => state.on_kill(actor),
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                let exit = match reason.as_deref() {
                    Some("killed") => Exit::Failed("killed".to_owned()),
                    _ => Exit::Done,
                };
                state.on_exit(&myself, actor.get_id(), exit).await
            }
            SupervisionEvent::ActorFailed(actor, error) => {
                let exit = match error.downcast_ref::<Fatal>() {
                    Some(Fatal(cause)) => Exit::Fatal(cause.clone()),
                    None => Exit::Failed(error.to_string()),
                };
                state.on_exit(&myself, actor.get_id(), exit).await
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => Ok(()),
        }
    }
}

type Handled = Result<(), ActorProcessingErr>;

impl SupervisorState {
    async fn on_add(&mut self, myself: &ActorRef<SupervisorMsg>, spec: ChildSpec) -> Handled {
        let event = Event::Add(spec.id.clone(), spec.restart);
        self.specs.entry(spec.id.clone()).or_insert(spec);
        self.on_event(myself, event).await
    }

    fn on_lookup(&self, child: &ChildId, reply: RpcReplyPort<Option<ActorCell>>) -> Handled {
        let actor = self.running.values().find(|(id, _)| id == child).map(|(_, actor)| actor.clone());
        // Who asked may have gone.
        let _ = reply.send(actor);
        Ok(())
    }

    fn on_status(&self, reply: RpcReplyPort<Vec<ChildStatus>>) -> Handled {
        let status = |id: &ChildId| ChildStatus {
            id: id.clone(),
            phase: self.decisions.phase(id).unwrap_or("ended"),
            restarts: self.decisions.restarts(id).unwrap_or(0),
            last_cause: self.causes.get(id).cloned(),
        };
        // Who asked may have gone.
        let _ = reply.send(self.decisions.children().map(status).collect());
        Ok(())
    }

    async fn on_stop(&mut self, myself: &ActorRef<SupervisorMsg>) -> Handled {
        self.stopping = true;
        self.on_event(myself, Event::Stop).await
    }

    async fn on_tick(&mut self, myself: &ActorRef<SupervisorMsg>) -> Handled {
        self.armed = None;
        self.on_event(myself, Event::Tick).await
    }

    fn on_kill(&self, actor: ActorId) -> Handled {
        if let Some((child, actor)) = self.running.get(&actor) {
            warn!(target: "cohort::supervision", %child, after = ?self.grace, "killing");
            actor.kill();
        }
        Ok(())
    }

    async fn on_exit(&mut self, myself: &ActorRef<SupervisorMsg>, actor: ActorId, exit: Exit) -> Handled {
        let Some((child, _)) = self.running.remove(&actor) else { return Ok(()) };
        if let Exit::Failed(cause) | Exit::Fatal(cause) = &exit {
            warn!(target: "cohort::supervision", %child, cause, "child_failed");
            self.causes.insert(child.clone(), cause.clone());
        }
        self.on_event(myself, Event::Exited(child, exit)).await
    }

    /// Takes the decision and carries it out. An escalation is this actor's own failure.
    async fn on_event(&mut self, myself: &ActorRef<SupervisorMsg>, event: Event) -> Handled {
        let mut events = VecDeque::from([event]);
        let mut commands = Vec::new();
        while let Some(event) = events.pop_front() {
            self.decisions.on_event(now(), event, &mut commands);
            for command in commands.drain(..) {
                match command {
                    Command::Start { child, incarnation } => {
                        if let Some(failed) = self.start(myself, child, incarnation).await {
                            events.push_back(failed);
                        }
                    }
                    Command::Stop(child) => self.stop(myself, &child),
                    Command::Escalate(escalation) => return Err(escalate(escalation)),
                }
            }
        }
        self.specs.retain(|id, _| self.decisions.phase(id).is_some());
        self.causes.retain(|id, _| self.decisions.phase(id).is_some());
        if self.stopping && self.decisions.is_idle() && self.running.is_empty() {
            myself.stop(None);
        }
        self.arm(myself);
        Ok(())
    }

    async fn start(&mut self, myself: &ActorRef<SupervisorMsg>, child: ChildId, incarnation: u32) -> Option<Event> {
        let factory = self.specs.get(&child)?.factory.clone();
        match factory.spawn(myself.get_cell(), incarnation).await {
            Ok(actor) => {
                info!(target: "cohort::supervision", %child, incarnation, "child_started");
                self.running.insert(actor.get_id(), (child, actor));
                None
            }
            Err(error) => {
                let exit = match error.downcast_ref::<Fatal>() {
                    Some(Fatal(cause)) => Exit::Fatal(cause.clone()),
                    None => Exit::Failed(format!("could not start: {error}")),
                };
                warn!(target: "cohort::supervision", %child, incarnation, %error, "child_not_started");
                self.causes.insert(child.clone(), error.to_string());
                Some(Event::Exited(child, exit))
            }
        }
    }

    fn stop(&self, myself: &ActorRef<SupervisorMsg>, child: &ChildId) {
        if let Some((id, (_, actor))) = self.running.iter().find(|(_, (name, _))| name == child) {
            let id = *id;
            actor.stop(Some("its supervisor".to_owned()));
            // Kept by the runtime; a kill that comes after the end finds nobody.
            drop(myself.send_after(self.grace, move || SupervisorMsg::Kill(id)));
        }
    }

    fn arm(&mut self, myself: &ActorRef<SupervisorMsg>) {
        let Some(wake) = self.decisions.next_wake() else { return };
        if self.armed.is_none_or(|armed| wake < armed) {
            self.armed = Some(wake);
            // A tick too many changes nothing.
            drop(myself.send_after(wake.saturating_duration_since(now()), || SupervisorMsg::Tick));
        }
    }
}

fn escalate(escalation: Escalation) -> ActorProcessingErr {
    warn!(target: "cohort::supervision", %escalation, "escalated");
    escalation.into()
}

/// Tokio's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
