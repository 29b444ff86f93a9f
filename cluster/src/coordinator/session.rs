//! One worker's connection: frames in, checked and handed to the coordinator; messages out, in order.
//!
//! Queues
//! - to the coordinator: shared by all sessions; when it is full a session stops reading, and its worker's stream fills.
//! - control messages to a worker: [`OUTBOX`]; a worker that lets them pile up does not read and is disconnected.
//! - batches being checked: [`CHECKING`] a session; further ones wait unread.
//!
//! Invariant **C1**: what a corrected sampler says of its log-probs goes no further: every token that comes over its connection,
//! in a batch or in a part of a group, is inexact from here on, also what it took over from an exact one.
use super::payload::summarize_batch;
use crate::controller::{ConnId, TrajectoriesSummary};
use crate::ledger::Accepted;
use cohort_actors::{Ack, Admitted, PeerLink, PeerSender};
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::learner::{CoordinatorToLearner, LearnerToCoordinator};
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator, ScoreReply};
use cohort_protocol::messages::rollout::{CoordinatorToRollout, RolloutToCoordinator};
use cohort_protocol::{Role, Trajectory, TrajectoryBatch, TurnPart, WorkerId};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

const OUTBOX: usize = 1024;
const CHECKING: usize = 4;

/// What sessions and helpers tell the coordinator.
#[derive(Debug)]
pub(super) enum Input {
    /// A worker was welcomed.
    Opened { conn: ConnId, hello: Hello, outbox: Outbox },
    /// A connection ended.
    Closed { conn: ConnId, why: String },
    /// A rollout worker spoke.
    Rollout { conn: ConnId, message: RolloutToCoordinator },
    /// A batch came and was checked.
    Batch { conn: ConnId, batch: Arc<TrajectoryBatch>, checked: Result<CheckedBatch, String>, ack: Option<Ack> },
    /// A reward worker spoke.
    Reward { conn: ConnId, message: RewardToCoordinator },
    /// Scores came.
    Scores { conn: ConnId, reply: Arc<ScoreReply>, ack: Option<Ack> },
    /// A learner spoke.
    Learner { conn: ConnId, message: LearnerToCoordinator },
    /// Something the coordinator had done elsewhere is finished.
    Event(Box<Effect>),
}

/// The end of a task that the coordinator started.
#[derive(Debug)]
pub(super) enum Effect {
    /// An event for the controller.
    Event(crate::controller::Event),
    /// Scores were checked and are ready to be accepted.
    Scored { event: crate::controller::Event, accepted: Option<Accepted<ScoreReply>>, ack: Option<Ack>, reply: Arc<ScoreReply> },
    /// A recovered group's batch, to be kept while it is scored.
    Restored { work: crate::controller::Work, batch: Arc<TrajectoryBatch> },
    /// A step's groups went out: what they hold.
    StepSent { tokens: u64, sampled: u64 },
    /// Close a connection: it failed in a way its own reading side may not notice.
    Close { conn: ConnId, why: String },
}

/// A batch that may be accepted.
#[derive(Debug)]
pub(super) struct CheckedBatch {
    pub(super) summary: TrajectoriesSummary,
    pub(super) accepted: Accepted<TrajectoryBatch>,
}

/// How a worker is spoken to.
#[derive(Debug, Clone)]
pub(super) enum Outbox {
    Rollout(Lane<CoordinatorToRollout>),
    Reward(Lane<CoordinatorToReward>),
    Learner(Lane<CoordinatorToLearner>),
}

impl Outbox {
    /// Ends the connection.
    pub(super) fn close(&self, why: &str) {
        match self {
            Self::Rollout(lane) => lane.sender.close(why),
            Self::Reward(lane) => lane.sender.close(why),
            Self::Learner(lane) => lane.sender.close(why),
        }
    }

    /// Asks the worker to leave.
    pub(super) fn drain(&self, reason: &str) {
        match self {
            Self::Rollout(lane) => lane.send(CoordinatorToRollout::Drain(reason.to_owned())),
            Self::Reward(lane) => lane.send(CoordinatorToReward::Drain(reason.to_owned())),
            Self::Learner(lane) => lane.send(CoordinatorToLearner::Drain(reason.to_owned())),
        }
    }
}

/// Control messages in order, bulk each on a stream of its own.
#[derive(Debug)]
pub(super) struct Lane<Out> {
    queue: mpsc::Sender<Out>,
    pub(super) sender: PeerSender<Out>,
    /// What both ends understand.
    pub(super) protocol: u16,
}

impl<Out> Clone for Lane<Out> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), sender: self.sender.clone(), protocol: self.protocol }
    }
}

impl<Out: WireMessage> Lane<Out> {
    /// Queues a control message; a worker whose queue is full does not read and is cut off.
    pub(super) fn send(&self, message: Out) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(message) {
            self.sender.close("it does not read its control messages");
        }
    }
}

/// Serves a welcomed worker until its connection ends.
pub(super) async fn serve(conn: ConnId, admitted: Admitted, core: mpsc::Sender<Input>) {
    let hello = admitted.hello.clone();
    let why = match hello.worker.role {
        Role::Rollout => {
            let corrected = admitted.corrected;
            serve_rollout(conn, admitted.into_link(), corrected, &core).await
        }
        Role::Reward => serve_reward(conn, admitted.into_link(), &core).await,
        Role::Learner => serve_learner(conn, admitted.into_link(), &core).await,
        role @ (Role::Coordinator | Role::Node | Role::Keeper) => format!("a {role} is no worker"),
    };
    // A coordinator that is gone needs no news of it.
    let _ = core.send(Input::Closed { conn, why }).await;
}

async fn open<In, Out>(
    conn: ConnId,
    link: &PeerLink<In, Out>,
    core: &mpsc::Sender<Input>,
    outbox: impl FnOnce(Lane<Out>) -> Outbox,
) -> JoinSet<()>
where
    In: WireMessage,
    Out: WireMessage + Send + Sync + 'static,
{
    let (queue, mut queued) = mpsc::channel::<Out>(OUTBOX);
    let sender = link.sender();
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let sender = sender.clone();
        async move {
            while let Some(message) = queued.recv().await {
                if let Err(error) = sender.send(&message).await {
                    // The reading side sees the loss and reports it.
                    return sender.close(&error.to_string());
                }
            }
        }
    });
    let outbox = outbox(Lane { queue, sender, protocol: link.protocol() });
    // A coordinator that is gone closes the link when this session is dropped.
    let _ = core.send(Input::Opened { conn, hello: link.hello().clone(), outbox }).await;
    tasks
}

async fn serve_rollout(
    conn: ConnId,
    link: PeerLink<RolloutToCoordinator, CoordinatorToRollout>,
    corrected: bool,
    core: &mpsc::Sender<Input>,
) -> String {
    let mut tasks = open(conn, &link, core, Outbox::Rollout).await;
    let (worker, checking) = (link.hello().worker, Arc::new(Semaphore::new(CHECKING)));
    loop {
        while tasks.try_join_next().is_some() {}
        match link.recv().await {
            Ok((RolloutToCoordinator::Trajectories(mut batch), ack)) => {
                if corrected {
                    batch.trajectories.iter_mut().for_each(Trajectory::mark_inexact);
                }
                let Ok(permit) = checking.clone().acquire_owned().await else { return "closing".into() };
                let core = core.clone();
                tasks.spawn(async move {
                    let input = check_batch(conn, batch, worker, ack).await;
                    drop(permit);
                    // As above.
                    let _ = core.send(input).await;
                });
            }
            Ok((mut message, _)) => {
                if let (true, RolloutToCoordinator::Partial(partial)) = (corrected, &mut message) {
                    partial.parts.iter_mut().for_each(TurnPart::mark_inexact);
                }
                if core.send(Input::Rollout { conn, message }).await.is_err() {
                    return "the coordinator is leaving".into();
                }
            }
            Err(error) => return error.to_string(),
        }
    }
}

async fn check_batch(conn: ConnId, batch: TrajectoryBatch, worker: WorkerId, ack: Option<Ack>) -> Input {
    let batch = Arc::new(batch);
    let checked = tokio::task::spawn_blocking({
        let batch = batch.clone();
        move || {
            let accepted = Accepted::trajectories(batch.clone(), worker).map_err(|e| e.to_string())?;
            let summary = summarize_batch(&batch, accepted.digest.clone())?;
            Ok(CheckedBatch { summary, accepted })
        }
    });
    let checked = checked.await.unwrap_or_else(|e| Err(format!("checking it failed: {e}")));
    Input::Batch { conn, batch, checked, ack }
}

async fn serve_reward(
    conn: ConnId,
    link: PeerLink<RewardToCoordinator, CoordinatorToReward>,
    core: &mpsc::Sender<Input>,
) -> String {
    let _tasks = open(conn, &link, core, Outbox::Reward).await;
    loop {
        let input = match link.recv().await {
            Ok((RewardToCoordinator::Scored(reply), ack)) => Input::Scores { conn, reply: Arc::new(reply), ack },
            Ok((message, _)) => Input::Reward { conn, message },
            Err(error) => return error.to_string(),
        };
        if core.send(input).await.is_err() {
            return "the coordinator is leaving".into();
        }
    }
}

async fn serve_learner(
    conn: ConnId,
    link: PeerLink<LearnerToCoordinator, CoordinatorToLearner>,
    core: &mpsc::Sender<Input>,
) -> String {
    let _tasks = open(conn, &link, core, Outbox::Learner).await;
    loop {
        match link.recv().await {
            Ok((message, _)) => {
                if core.send(Input::Learner { conn, message }).await.is_err() {
                    return "the coordinator is leaving".into();
                }
            }
            Err(error) => return error.to_string(),
        }
    }
}
