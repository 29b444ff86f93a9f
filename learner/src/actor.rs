//! The learner's actor: hands events to [`LearnerState`] and carries out what it decides.
//!
//! Invariants
//! - **W1** a job runs beside the actor, which stays able to answer and to beat; a job that panics is a failed job.
//! - **W2** a step's bulk stream is acknowledged when the step is taken over into this actor, before it is computed.
//! - **W3** a message that does not reach the coordinator is not sent again: after a reconnection `Ready` says what is
//!   held, and whatever was asked can be asked again at no cost.
use crate::error::LearnerError;
use crate::jobs::Workshop;
use crate::patience::Patience;
use crate::state::{Aftermath, Command, Event, Failure, Job, LearnerState, Outcome};
use cohort_actors::{Ack, LinkSender};
use cohort_engine::EngineError;
use cohort_protocol::Epoch;
use cohort_protocol::messages::learner::{CoordinatorToLearner, Fault, LearnerToCoordinator};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

/// What the actor is told.
#[derive(Debug)]
pub enum LearnerMsg {
    /// A connection stands.
    Connected(Epoch),
    /// The coordinator asks for something; bulk comes with its acknowledgement.
    Received(CoordinatorToLearner, Option<Ack>),
    /// The running job has ended.
    Finished(Outcome),
    /// A second has passed.
    Beat,
}

/// What the actor starts with.
#[derive(Debug)]
pub struct LearnerActorArgs {
    /// What jobs work on.
    pub workshop: Arc<Workshop>,
    /// Where followers find this lead.
    pub meeting: Option<String>,
    /// The way to the coordinator.
    pub sender: LinkSender<LearnerToCoordinator>,
    /// Told once, when the worker leaves.
    pub exit: oneshot::Sender<Result<(), LearnerError>>,
}

/// What the actor remembers.
#[derive(Debug)]
pub struct LearnerActorState {
    decide: LearnerState,
    workshop: Arc<Workshop>,
    sender: LinkSender<LearnerToCoordinator>,
    exit: Option<oneshot::Sender<Result<(), LearnerError>>>,
    job: Option<JoinHandle<()>>,
}

/// The learner's actor.
#[derive(Debug, Clone, Copy)]
pub struct LearnerActor;

impl Actor for LearnerActor {
    type Msg = LearnerMsg;
    type State = LearnerActorState;
    type Arguments = LearnerActorArgs;

    async fn pre_start(&self, _myself: ActorRef<LearnerMsg>, args: LearnerActorArgs) -> Result<Self::State, ActorProcessingErr> {
        let LearnerActorArgs { workshop, meeting, sender, exit } = args;
        let parameters = workshop.engine.spec().parameters() as u64;
        let patience = Patience::new(parameters, workshop.training.packing.micro_batch_tokens as u64);
        Ok(LearnerActorState { decide: LearnerState::new(patience, meeting), workshop, sender, exit: Some(exit), job: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<LearnerMsg>,
        message: LearnerMsg,
        state: &mut LearnerActorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LearnerMsg::Connected(epoch) => state.on_event(Event::Connected(epoch), &myself).await,
            LearnerMsg::Received(request, ack) => state.on_received(request, ack, &myself).await,
            LearnerMsg::Finished(outcome) => state.on_event(Event::Finished(outcome), &myself).await,
            LearnerMsg::Beat => state.on_beat(&myself).await,
        }
        Ok(())
    }

    async fn post_stop(&self, _myself: ActorRef<LearnerMsg>, state: &mut LearnerActorState) -> Result<(), ActorProcessingErr> {
        if let Some(job) = state.job.take() {
            job.abort();
        }
        Ok(())
    }
}

impl LearnerActorState {
    async fn on_received(&mut self, request: CoordinatorToLearner, ack: Option<Ack>, myself: &ActorRef<LearnerMsg>) {
        if let Some(ack) = ack {
            ack.accept();
        }
        self.on_event(Event::Received(request), myself).await;
    }

    async fn on_beat(&mut self, myself: &ActorRef<LearnerMsg>) {
        let micro_batches = self.workshop.micro_batches.load(Ordering::Relaxed);
        self.on_event(Event::Beat(micro_batches), myself).await;
    }

    async fn on_event(&mut self, event: Event, myself: &ActorRef<LearnerMsg>) {
        let mut commands = Vec::new();
        self.decide.on_event(event, &mut commands);
        for command in commands {
            match command {
                Command::Send(message) => self.send(&message).await,
                Command::Start(job) => self.start(job, myself.clone()),
                Command::Leave(reason) => {
                    info!(target: "cohort::learner", reason, "leaving");
                    self.leave(Ok(()), myself);
                }
                Command::Fail(reason) => self.leave(Err(LearnerError::Engine(EngineError::Stopped(reason))), myself),
            }
        }
    }

    async fn send(&self, message: &LearnerToCoordinator) {
        if let LearnerToCoordinator::Failed(failed) = message {
            warn!(target: "cohort::learner", what = failed.what, error = failed.error, fatal = failed.fatal, "failed");
        }
        if let Err(error) = self.sender.send(message).await {
            debug!(target: "cohort::learner", %error, "not_sent");
        }
    }

    fn start(&mut self, job: Job, myself: ActorRef<LearnerMsg>) {
        let work = tokio::spawn(self.workshop.clone().run(job));
        self.job = Some(tokio::spawn(async move {
            let outcome = work.await.unwrap_or_else(|panicked| {
                Outcome::Failed(Failure {
                    error: panicked.to_string(),
                    fatal: true,
                    fault: Fault::Worker,
                    aftermath: Aftermath::WeightsLost,
                })
            });
            // An actor that has stopped has no use for the outcome.
            let _ = myself.cast(LearnerMsg::Finished(outcome));
        }));
    }

    fn leave(&mut self, result: Result<(), LearnerError>, myself: &ActorRef<LearnerMsg>) {
        if let Some(exit) = self.exit.take() {
            // A worker that has gone already needs no telling.
            let _ = exit.send(result);
        }
        myself.stop(None);
    }
}
