//! The reward worker's actor: moves messages between the link, the graders and [`crate::state`], which decides.
//!
//! Invariants
//! - **K1** a request is acknowledged once it stands in the state; a crash before that leaves it with the coordinator.
//! - **K2** a grader that panics is an outcome that says so, for every sample of its group.
//! - **K3** leaving, the worker aborts what it grades; the children of plug-ins die with their rewards.
use crate::RewardError;
use crate::reward::{Reward, ScoreInput, failed};
use crate::state::{Command, Event, ReplyKey, RewardState};
use cohort_actors::crash::{SCORE_SENT, crash_point};
use cohort_actors::{Ack, Dialer, LinkError, LinkOptions, LinkSender, Shutdown, WorkerLink};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator, ScoreReply, ScoreRequest};
use cohort_protocol::score::SampleOutcome;
use cohort_protocol::{Epoch, ScoreOutcome};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

/// Interval of beats.
const BEAT: Duration = Duration::from_secs(1);

/// What a reward worker is started with.
pub struct RewardArgs {
    /// How it introduces itself.
    pub hello: Hello,
    /// The graders, from [`crate::Registry::build`].
    pub reward: Arc<dyn Reward>,
    /// Groups graded at once.
    pub capacity: u16,
}

/// Grades for the coordinator that the dialer reaches, until it is drained or told to leave.
///
/// Errors: [`RewardError::Link`] where the coordinator refuses the worker or stays away, [`RewardError::Actor`].
pub async fn run_worker(args: RewardArgs, dialer: Arc<dyn Dialer>, shutdown: Shutdown) -> Result<(), RewardError> {
    let worker = args.hello.worker;
    let link = WorkerLink::connect(dialer, args.hello, LinkOptions::default(), shutdown).await;
    let mut link: WorkerLink<CoordinatorToReward, RewardToCoordinator> = match link {
        Err(LinkError::Shutdown { .. }) => return Ok(()),
        link => link?,
    };
    let start = RewardActorArgs { reward: args.reward, sender: link.sender(), capacity: args.capacity };
    let (actor, mut ended) = Actor::spawn(None, RewardActor, start).await.map_err(|e| RewardError::Actor(e.to_string()))?;
    let gone = |e: &dyn std::fmt::Display| RewardError::Actor(format!("its mailbox is closed: {e}"));
    actor.cast(RewardMsg::Connected(link.epoch())).map_err(|e| gone(&e))?;
    let result = loop {
        let received = tokio::select! {
            biased;
            ended = &mut ended => break ended.map_err(|e| RewardError::Actor(e.to_string())),
            received = link.recv() => received,
        };
        let message = match received {
            Ok((message, ack)) => RewardMsg::Inbound(message, ack),
            Err(lost) if lost.is_lost() => match link.reconnect().await {
                Ok(welcome) => RewardMsg::Connected(welcome.epoch),
                Err(LinkError::Shutdown { .. }) => break Ok(()),
                Err(e) => break Err(e.into()),
            },
            Err(LinkError::Shutdown { .. }) => break Ok(()),
            Err(e) => break Err(e.into()),
        };
        // An actor that stops meanwhile is seen by the select above.
        let _ = actor.cast(message);
    };
    // Already stopped where it was drained.
    let _ = actor.stop_and_wait(None, Some(Duration::from_secs(5))).await;
    info!(target: "cohort::reward", worker = %worker, error = result.as_ref().err().map(ToString::to_string), "worker_left");
    result
}

/// What the actor hears.
enum RewardMsg {
    /// The link has a connection to this epoch.
    Connected(Epoch),
    /// From the coordinator; bulk with its acknowledgement.
    Inbound(CoordinatorToReward, Option<Ack>),
    /// A grading task is done.
    Graded(ScoreReply),
    /// A reply is acknowledged or given up.
    Settled(ReplyKey),
    /// Each second.
    Tick,
}

struct RewardActorArgs {
    reward: Arc<dyn Reward>,
    sender: LinkSender<RewardToCoordinator>,
    capacity: u16,
}

struct RewardActorState {
    decide: RewardState,
    reward: Arc<dyn Reward>,
    sender: LinkSender<RewardToCoordinator>,
    tasks: JoinSet<()>,
}

struct RewardActor;

impl Actor for RewardActor {
    type Msg = RewardMsg;
    type State = RewardActorState;
    type Arguments = RewardActorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<RewardMsg>,
        args: RewardActorArgs,
    ) -> Result<RewardActorState, ActorProcessingErr> {
        // Ends with the actor.
        drop(myself.send_interval(BEAT, || RewardMsg::Tick));
        Ok(RewardActorState {
            // In beats, of which there is one a second.
            decide: RewardState::new(args.capacity, args.reward.longest().as_secs().saturating_add(1)),
            reward: args.reward,
            sender: args.sender,
            tasks: JoinSet::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<RewardMsg>,
        message: RewardMsg,
        state: &mut RewardActorState,
    ) -> Result<(), ActorProcessingErr> {
        // Finished tasks only free their memory here.
        while state.tasks.try_join_next().is_some() {}
        match message {
            RewardMsg::Connected(epoch) => state.on_event(&myself, Event::Connected(epoch), None),
            RewardMsg::Inbound(CoordinatorToReward::Score(request), ack) => {
                state.on_event(&myself, Event::Requested(request), ack)
            }
            RewardMsg::Inbound(CoordinatorToReward::Drain(reason), ack) => state.on_drain(&myself, &reason, ack),
            RewardMsg::Graded(reply) => state.on_event(&myself, Event::Graded(reply), None),
            RewardMsg::Settled(key) => state.on_event(&myself, Event::Settled(key), None),
            RewardMsg::Tick => state.on_event(&myself, Event::Tick, None),
        }
        Ok(())
    }
}

impl RewardActorState {
    fn on_drain(&mut self, myself: &ActorRef<RewardMsg>, reason: &str, ack: Option<Ack>) {
        info!(target: "cohort::reward", reason, "draining");
        if let Some(ack) = ack {
            ack.accept();
        }
        self.on_event(myself, Event::Drain, None);
    }

    fn on_event(&mut self, myself: &ActorRef<RewardMsg>, event: Event, mut ack: Option<Ack>) {
        let mut commands = Vec::new();
        self.decide.on_event(event, &mut commands);
        for command in commands {
            match command {
                Command::Accept => {
                    if let Some(ack) = ack.take() {
                        ack.accept();
                    }
                }
                Command::SayReady(capacity) => self.tell(RewardToCoordinator::Ready(capacity)),
                Command::Beat(mut beat) => {
                    beat.breakers = self.reward.breakers();
                    self.tell(RewardToCoordinator::Beat(beat));
                }
                Command::Grade(request) => {
                    self.tasks.spawn(grade(self.reward.clone(), request, myself.clone()));
                }
                Command::Reply(reply) => {
                    self.tasks.spawn(deliver(self.sender.clone(), reply, myself.clone()));
                }
                Command::Stop => myself.stop(None),
            }
        }
    }

    /// Control messages are sent once: a lost connection makes the next one begin with `Ready`, and beats come again.
    fn tell(&mut self, message: RewardToCoordinator) {
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            if let Err(e) = sender.send(&message).await {
                debug!(target: "cohort::reward", error = %e, "control_message_lost");
            }
        });
    }
}

/// Grades one group and reports to the actor, whatever happens (K2).
async fn grade(reward: Arc<dyn Reward>, request: ScoreRequest, actor: ActorRef<RewardMsg>) {
    let begun = Instant::now();
    let samples = request.samples.len();
    let mut report = Report { actor, request, begun, outcomes: None };
    let mut outcomes = match ScoreInput::from_request(&report.request) {
        Ok(input) => reward.score(&input).await,
        Err(e) => vec![failed(reward.name(), &e.to_string(), false); samples],
    };
    if outcomes.len() != samples {
        let why = format!("{} outcomes for a group of {samples} samples", outcomes.len());
        outcomes = vec![failed(reward.name(), &why, false); samples];
    }
    report.outcomes = Some(outcomes);
}

/// Sends the outcome when it is dropped: after grading, or while a panic unwinds.
struct Report {
    actor: ActorRef<RewardMsg>,
    request: ScoreRequest,
    begun: Instant,
    outcomes: Option<Vec<ScoreOutcome>>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let request = &self.request;
        let outcomes = match self.outcomes.take() {
            Some(outcomes) => outcomes,
            None if std::thread::panicking() => {
                let panicked = "the grader panicked; the log has the place. This is a bug of the grader";
                vec![failed("rewards", panicked, false); request.samples.len()]
            }
            // Aborted: the worker leaves, and the coordinator asks another one.
            None => return,
        };
        for outcome in &outcomes {
            if let ScoreOutcome::Failed { error, retryable } = outcome {
                warn!(target: "cohort::reward", group = request.group.0, attempt = request.attempt.0, retryable, error, "sample_not_graded");
            }
        }
        let outcomes = request
            .samples
            .iter()
            .zip(outcomes)
            .map(|(sample, outcome)| SampleOutcome { sample: sample.sample, outcome })
            .collect();
        let reply = ScoreReply {
            epoch: request.epoch,
            purpose: request.purpose,
            group: request.group,
            attempt: request.attempt,
            outcomes,
            score_us: u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        // An actor that is gone has no use for it: the coordinator asks another worker.
        let _ = self.actor.cast(RewardMsg::Graded(reply));
    }
}

/// Sends a reply until the coordinator has it or no longer wants it.
async fn deliver(sender: LinkSender<RewardToCoordinator>, reply: ScoreReply, actor: ActorRef<RewardMsg>) {
    let key = ReplyKey::of_reply(&reply);
    let message = RewardToCoordinator::Scored(reply);
    match with_crash_point(sender.send_bulk(&message)).await {
        Ok(()) => {}
        Err(LinkError::StaleEpoch { .. }) => debug!(target: "cohort::reward", group = key.group.0, "reply_of_old_epoch_dropped"),
        // Nothing more can be sent; the coordinator gives the group to another worker.
        Err(LinkError::Shutdown { .. } | LinkError::Lost(_)) => return,
        Err(e) => error!(target: "cohort::reward", group = key.group.0, error = %e, "reply_not_delivered"),
    }
    // As above: an actor that is gone needs no news.
    let _ = actor.cast(RewardMsg::Settled(key));
}

/// Passes the crash point once the reply is on its way and before its acknowledgement is seen.
async fn with_crash_point<T>(sending: impl Future<Output = T>) -> T {
    /// Turns given to the transport's own tasks to put the frame on the wire.
    const TURNS: usize = 16;
    let mut sending = pin!(sending);
    for _ in 0..TURNS {
        let first = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        if let Poll::Ready(done) = first {
            crash_point(SCORE_SENT);
            return done;
        }
        tokio::task::yield_now().await;
    }
    crash_point(SCORE_SENT);
    sending.await
}
