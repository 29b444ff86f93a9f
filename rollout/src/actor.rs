//! Carries out what [`state`](crate::state) decides: tasks that generate and swap, messages that leave.
//!
//! Invariants
//! - **A1** no await in a handler takes longer than a control message: generation, swaps and bulk sends are tasks that
//!   report back.
//! - **A2** the mailbox is bounded by what can report: leases in work, one swap, the link's receive loop, a clock.
use crate::RolloutError;
use crate::episode::Stage;
use crate::scene::TokenHook;
use crate::state::{Command, Event, Failure, LeaseKey, RolloutState};
use crate::tape::Tapes;
use cohort_actors::crash::{MID_DECODE, TRAJECTORY_SENT, crash_point};
use cohort_actors::{LinkError, LinkSender};
use cohort_engine::WeightRing;
use cohort_protocol::messages::rollout::{PartialGroup, RolloutToCoordinator, WeightsReady};
use cohort_protocol::{GroupLease, SampleIx, Trajectory, TrajectoryBatch, TurnPart};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};

/// Tokens of one message about a group that is not complete, at most; past it another message begins.
const TOKENS_A_MESSAGE: usize = 64 * 1024;
/// How often a worker shows that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// What the actor is told.
#[derive(Debug)]
pub enum RolloutMsg {
    /// Something for the state to decide on.
    Event(Event),
    /// A second has passed.
    Tick,
}

/// What the actor is made of.
pub struct RolloutActorArgs {
    /// What generates.
    pub stage: Stage,
    /// Where weights come from.
    pub ring: Arc<dyn WeightRing>,
    /// Where messages go.
    pub sender: LinkSender<RolloutToCoordinator>,
    /// Leases at once.
    pub capacity: u16,
    /// Waited before each delivery; none but for tests and measurements.
    pub delay: Duration,
}

/// The actor's own: decisions, tasks, counters.
pub struct RolloutActorState {
    decide: RolloutState,
    stage: Stage,
    ring: Arc<dyn WeightRing>,
    sender: LinkSender<RolloutToCoordinator>,
    generating: HashMap<LeaseKey, AbortHandle>,
    /// Of what the state holds, where episodes can be played again.
    tapes: HashMap<LeaseKey, Arc<Tapes>>,
    tasks: JoinSet<()>,
    delay: Duration,
    tokens: Arc<AtomicU64>,
}

/// See the module.
#[derive(Debug)]
pub struct RolloutActor;

impl Actor for RolloutActor {
    type Msg = RolloutMsg;
    type State = RolloutActorState;
    type Arguments = RolloutActorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<RolloutMsg>,
        args: RolloutActorArgs,
    ) -> Result<RolloutActorState, ActorProcessingErr> {
        myself.send_interval(BEAT, || RolloutMsg::Tick);
        Ok(RolloutActorState {
            decide: RolloutState::new(args.capacity),
            stage: args.stage,
            ring: args.ring,
            sender: args.sender,
            generating: HashMap::new(),
            tapes: HashMap::new(),
            tasks: JoinSet::new(),
            delay: args.delay,
            tokens: Arc::new(AtomicU64::new(0)),
        })
    }

    async fn handle(
        &self,
        me: ActorRef<RolloutMsg>,
        msg: RolloutMsg,
        state: &mut RolloutActorState,
    ) -> Result<(), ActorProcessingErr> {
        match msg {
            RolloutMsg::Event(event) => state.on_event(&me, event).await,
            RolloutMsg::Tick => state.on_event(&me, Event::Ticked(state.tokens.load(Ordering::Relaxed))).await,
        }
        Ok(())
    }
}

impl RolloutActorState {
    async fn on_event(&mut self, me: &ActorRef<RolloutMsg>, event: Event) {
        if let Event::Generated(key, _) = &event {
            self.generating.remove(key);
        }
        // Finished tasks are only collected here; each has reported for itself.
        while self.tasks.try_join_next().is_some() {}
        let mut commands = Vec::new();
        self.decide.on_event(event, &mut commands);
        for command in commands {
            self.carry_out(me, command).await;
        }
        self.tapes.retain(|key, _| self.decide.holds(key));
    }

    async fn carry_out(&mut self, me: &ActorRef<RolloutMsg>, command: Command) {
        match command {
            Command::Swap(weights) => self.swap(me.clone(), weights),
            Command::Generate(lease, parts) => self.generate(me.clone(), *lease, parts),
            Command::HandIn(keys) => {
                for key in keys {
                    self.hand_in(key).await;
                }
            }
            Command::HandOver(keys) => {
                for key in keys {
                    self.tapes.get(&key).into_iter().for_each(|tapes| tapes.rewind());
                    self.hand_in(key).await;
                }
            }
            Command::Abort(key) => {
                if let Some(task) = self.generating.remove(&key) {
                    task.abort();
                }
            }
            Command::Ready(ready) => self.say(RolloutToCoordinator::Ready(ready)).await,
            Command::SwapFailed(failed) => {
                let (version, error) = (failed.version.0, &failed.error);
                tracing::warn!(target: "cohort::rollout", version, error, "swap_failed");
                self.say(RolloutToCoordinator::SwapFailed(failed)).await;
            }
            Command::Beat(beat) => self.say(RolloutToCoordinator::Beat(beat)).await,
            Command::Fail(failed) => {
                tracing::warn!(target: "cohort::rollout", group = failed.group.0, error = failed.error, "lease_failed");
                self.say(RolloutToCoordinator::LeaseFailed(failed)).await;
            }
            Command::Send(batch) => self.send(me.clone(), *batch),
            Command::Leave(reason) => me.stop(Some(reason)),
        }
    }

    /// A control message that is lost with its connection needs no care: after the next one the worker says `Ready`, and the
    /// coordinator leases again what it does not hear of.
    async fn say(&self, message: RolloutToCoordinator) {
        if let Err(error) = self.sender.send(&message).await {
            tracing::debug!(target: "cohort::rollout", %error, "control_message_lost");
        }
    }

    fn swap(&mut self, me: ActorRef<RolloutMsg>, weights: WeightsReady) {
        let (engine, ring) = (self.stage.engine.clone(), self.ring.clone());
        self.tasks.spawn(async move {
            let swapped = engine.swap(ring, weights.slot, weights.version.0, weights.digest).await;
            report(&me, Event::Swapped(weights.version, swapped.map_err(|e| e.to_string())));
        });
    }

    /// Tells the coordinator what a lease has got further.
    async fn hand_in(&self, key: LeaseKey) {
        let parts = self.tapes.get(&key).map_or_else(Vec::new, |tapes| tapes.hand_in());
        let LeaseKey { epoch, purpose, group, attempt } = key;
        let mut rest = parts.into_iter().peekable();
        while rest.peek().is_some() {
            let (mut parts, mut tokens) = (Vec::new(), 0);
            while let Some(part) = rest.next_if(|part| tokens == 0 || tokens + part.len() <= TOKENS_A_MESSAGE) {
                tokens += part.len();
                parts.push(part);
            }
            self.say(RolloutToCoordinator::Partial(PartialGroup { epoch, purpose, group, attempt, parts })).await;
        }
    }

    fn generate(&mut self, me: ActorRef<RolloutMsg>, lease: GroupLease, parts: Vec<TurnPart>) {
        let key = LeaseKey::of(&lease);
        let (stage, tokens, delay) = (self.stage.clone(), self.tokens.clone(), self.delay);
        let tapes = stage.replays().then(|| Arc::new(Tapes::new(lease.samples, parts)));
        let taped = tapes.clone();
        let task = self.tasks.spawn(async move {
            let result = generate_group(&stage, Arc::new(lease), tokens, taped).await;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            let result = result.map_err(|e| Failure { retryable: e.is_retryable(), error: e.to_string() });
            report(&me, Event::Generated(key, result));
        });
        self.generating.insert(key, task);
        self.tapes.extend(tapes.map(|tapes| (key, tapes)));
    }

    fn send(&mut self, me: ActorRef<RolloutMsg>, batch: TrajectoryBatch) {
        let TrajectoryBatch { epoch, purpose, group, attempt, .. } = batch;
        let key = LeaseKey { epoch, purpose, group, attempt };
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            let message = RolloutToCoordinator::Trajectories(batch);
            let sending = sender.send_bulk(&message);
            tokio::pin!(sending);
            // Polled once, the frame is on its way; an armed test dies before the acknowledgement is read.
            let result = match std::future::poll_fn(|cx| std::task::Poll::Ready(sending.as_mut().poll(cx))).await {
                std::task::Poll::Ready(result) => result,
                std::task::Poll::Pending => {
                    crash_point(TRAJECTORY_SENT);
                    sending.await
                }
            };
            match result {
                Ok(()) => report(&me, Event::Delivered(key)),
                // What the next coordinator is told of it is decided when the worker has connected to it.
                Err(LinkError::StaleEpoch { .. } | LinkError::Shutdown { .. }) => {}
                Err(error) => report(&me, Event::Undelivered(key, error.to_string())),
            }
        });
    }
}

/// The actor ends only with the worker; nobody is left to tell then.
fn report(me: &ActorRef<RolloutMsg>, event: Event) {
    let _ = me.cast(RolloutMsg::Event(event));
}

/// All samples of a lease at once, in order; the first failure stops the others.
pub(crate) async fn generate_group(
    stage: &Stage,
    lease: Arc<GroupLease>,
    tokens: Arc<AtomicU64>,
    tapes: Option<Arc<Tapes>>,
) -> Result<Vec<Trajectory>, RolloutError> {
    let decoded = Arc::new(AtomicBool::new(false));
    let hook: TokenHook = Arc::new(move || {
        tokens.fetch_add(1, Ordering::Relaxed);
        if !decoded.swap(true, Ordering::Relaxed) {
            crash_point(MID_DECODE);
        }
    });
    let mut samples = JoinSet::new();
    for sample in 0..lease.samples {
        let (stage, lease, hook, tapes) = (stage.clone(), lease.clone(), hook.clone(), tapes.clone());
        samples.spawn(async move { stage.run_taped(&lease, SampleIx(sample), Some(hook), tapes).await });
    }
    let mut done = Vec::with_capacity(samples.len());
    while let Some(sample) = samples.join_next().await {
        done.push(sample.map_err(|e| RolloutError::Episode(format!("a sample's task ended: {e}")))??);
    }
    done.sort_by_key(|trajectory| trajectory.sample);
    Ok(done)
}
