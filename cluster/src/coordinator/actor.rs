//! The coordinator's one task: events to the controller, its commands to workers, ledger and reports. It decides nothing
//! itself and does nothing heavy: checks, encoding and files are other threads' work.
//!
//! Invariants
//! - **K1** a delivery is acknowledged after the controller kept or discarded it, which for training is after the ledger
//!   has it.
//! - **K2** the wave's payloads are kept in memory once; everything else is read back from the segments.
//! - **K3** after a stall of the coordinator itself nobody is called silent before their beats have been read.
mod receiving;
mod sending;

use super::error::CoordinatorError;
use super::exports::{Export, Exports};
use super::journal::{Journal, Written};
use super::news::News;
use super::partials::Partials;
use super::payload::{group_payload, samples_to_score, summarize_scores};
use super::report::{Report, example};
use super::session::{CheckedBatch, Effect, Input, Outbox};
use super::{CoordinatorArgs, DRAIN_LIMIT};
use crate::controller::{Command, ConnId, ControllerState, DeliveryId, Event, Fact, Outcome, Refused, ScoresSummary, Work};
use crate::ledger::{Accepted, Entry};
use crate::progress::{EvaluationReport, Progress, RunPhase};
use cohort_actors::crash::{INTENT_COMMITTED, crash_point};
use cohort_actors::{Ack, Shutdown, wall};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::learner::{
    CheckpointRequest, CoordinatorToLearner, LearnerToCoordinator, Load, LoadFrom, PublishRequest, StepRequest,
};
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator, ScoreReply, ScoreRequest};
use cohort_protocol::messages::rollout::{
    CancelLease, ContinuedLease, CoordinatorToRollout, PartialGroup, RolloutToCoordinator, WeightsReady,
};
use cohort_protocol::version::PARTIAL_GROUPS;
use cohort_protocol::{
    AttemptId, GroupLease, GroupPayload, LeasePurpose, PolicyVersion, Role, ScoreOutcome, StepId, StepIntent, TrajectoryBatch,
    WorkerId,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// Between two states on the disk and to the display, and as much again for every [`CROWD`] of workers: each is in it.
const STATUS: Duration = Duration::from_millis(250);
/// See [`STATUS`].
const CROWD: usize = 1000;
/// Time that workers have to leave at the end of the run.
const FAREWELL: Duration = Duration::from_secs(2);
/// A pause of this task that makes the next look at deadlines meaningless.
const OWN_STALL: Duration = Duration::from_secs(1);
/// Inputs taken before the clock is looked at again.
const BURST: usize = 256;

/// A frame that waits for its acknowledgement.
#[derive(Debug)]
struct Delivery {
    ack: Option<Ack>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Batch(Arc<TrajectoryBatch>, Option<Accepted<TrajectoryBatch>>),
    Reply(Arc<ScoreReply>, Option<Accepted<ScoreReply>>),
}

/// Accepted contents of a group.
#[derive(Debug, Default, Clone)]
struct Kept {
    batch: Option<Arc<TrajectoryBatch>>,
    reply: Option<Arc<ScoreReply>>,
}

/// Those who are told what happens.
pub(super) struct Told {
    pub(super) exports: Exports,
    pub(super) news: News,
}

/// What the task holds.
pub(super) struct Core {
    pub(super) args: Arc<CoordinatorArgs>,
    pub(super) state: ControllerState,
    pub(super) report: Report,
    pub(super) journal: Journal,
    pub(super) told: Told,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) tasks: JoinSet<()>,
    conns: HashMap<ConnId, (WorkerId, Outbox)>,
    deliveries: HashMap<DeliveryId, Delivery>,
    kept: HashMap<Work, Kept>,
    partials: Partials,
    examples: HashMap<(u64, bool), EvaluationReport>,
    next_delivery: u64,
    outcome: Option<Outcome>,
    last_status: Option<Instant>,
}

impl Core {
    pub(super) fn new(
        args: Arc<CoordinatorArgs>,
        state: ControllerState,
        report: Report,
        journal: Journal,
        told: Told,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        Self {
            args,
            state,
            report,
            journal,
            told,
            inputs,
            tasks: JoinSet::new(),
            conns: HashMap::new(),
            deliveries: HashMap::new(),
            kept: HashMap::new(),
            partials: Partials::default(),
            examples: HashMap::new(),
            next_delivery: 0,
            outcome: None,
            last_status: None,
        }
    }

    /// Tells the controller whom an earlier coordinator of this launch had.
    pub(super) async fn begin(&mut self, known: Vec<(WorkerId, u32)>) {
        if !known.is_empty() {
            self.event(Event::Known(known)).await;
        }
    }

    /// Runs until the controller ends the run.
    pub(super) async fn run(
        &mut self,
        inbox: &mut mpsc::Receiver<Input>,
        mut written: mpsc::UnboundedReceiver<Written>,
        shutdown: &Shutdown,
    ) -> Result<Outcome, CoordinatorError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut drain_by = None::<tokio::time::Instant>;
        let mut seen = Instant::now();
        let mut standing = self.args.standing.clone();
        standing.mark_changed();
        loop {
            if let Some(outcome) = self.outcome.take() {
                return Ok(outcome);
            }
            tokio::select! {
                news = written.recv() => match news {
                    Some(Written::Recorded(id)) => self.event(Event::Recorded(id)).await,
                    Some(Written::NoRoom(path, error)) => {
                        let (what, error) = (Refused::Ledger(path), error.to_string());
                        self.event(Event::NoRoom { what, error }).await;
                    }
                    Some(Written::Failed(error)) => return Err(error.into()),
                    None => return Err(CoordinatorError::Internal("journal")),
                },
                Some(input) = inbox.recv() => self.input(input).await,
                Ok(()) = standing.changed() => {
                    let now = *standing.borrow_and_update();
                    self.event(Event::Standing(now)).await;
                }
                reason = shutdown.wait(), if drain_by.is_none() => {
                    drain_by = Some(tokio::time::Instant::now() + DRAIN_LIMIT);
                    self.event(Event::DrainRequested { reason }).await;
                }
                () = sleep_until(drain_by) => {
                    self.notice(format!("not in order within {} s: leaving as it is; the ledger has everything", DRAIN_LIMIT.as_secs()));
                    return Ok(Outcome::Drained);
                }
                _ = tick.tick() => {
                    // K3: first whatever has come meanwhile.
                    for _ in 0..BURST {
                        let Ok(input) = inbox.try_recv() else { break };
                        self.input(input).await;
                    }
                    let now = Instant::now();
                    let stalled = now.saturating_duration_since(seen) > OWN_STALL;
                    seen = now;
                    if !stalled {
                        self.event(Event::Tick).await;
                    }
                    self.publish_status(now);
                    while self.tasks.try_join_next().is_some() {}
                }
            }
        }
    }

    /// Asks everyone to leave and waits until they have, at most [`FAREWELL`].
    pub(super) async fn dismiss(&mut self, reason: &str, mut inbox: mpsc::Receiver<Input>) {
        for (_, outbox) in self.conns.values() {
            outbox.drain(reason);
        }
        // A worker does not leave with a delivery in its hands. Nothing of them is kept: the groups stay in flight.
        self.deliveries.drain().filter_map(|(_, delivery)| delivery.ack).for_each(Ack::accept);
        let gone = async {
            while !self.conns.is_empty() {
                match inbox.recv().await {
                    Some(Input::Closed { conn, .. }) => drop(self.conns.remove(&conn)),
                    Some(Input::Opened { conn, outbox, hello }) => {
                        outbox.drain(reason);
                        self.conns.insert(conn, (hello.worker, outbox));
                    }
                    Some(Input::Batch { ack: Some(ack), .. } | Input::Scores { ack: Some(ack), .. }) => ack.accept(),
                    Some(Input::Event(effect)) => {
                        if let Effect::Scored { ack: Some(ack), .. } = *effect {
                            ack.accept();
                        }
                    }
                    // Whatever else they say now, the run is over.
                    Some(_) => {}
                    None => return,
                }
            }
        };
        // Those that do not leave see their connection end.
        let _ = tokio::time::timeout(FAREWELL, gone).await;
        self.disconnect(reason);
    }

    /// Ends every connection; workers look for the next coordinator.
    pub(super) fn disconnect(&mut self, reason: &str) {
        for (_, (_, outbox)) in self.conns.drain() {
            outbox.close(reason);
        }
    }

    /// The last state on the disk.
    pub(super) fn final_status(&mut self) {
        self.last_status = None;
        self.publish_status(Instant::now());
    }

    async fn event(&mut self, event: Event) {
        let mut commands = Vec::new();
        self.state.on_event(Instant::now(), event, &mut commands);
        for command in commands {
            self.obey(command).await;
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Record { id, facts } => {
                let entries = facts.into_iter().filter_map(|fact| self.entry(fact)).collect();
                if !self.journal.record(id, entries).await {
                    tracing::error!(target: "cohort::coordinator", "journal_gone");
                }
            }
            Command::Lease { conn, work, attempt, version, cursor, samples } => {
                self.send_lease(conn, work, attempt, version, cursor, samples);
            }
            Command::CancelLease { conn, work, attempt } => {
                let cancel = CancelLease { purpose: work.purpose, group: work.group, attempt };
                self.to_rollout(conn, CoordinatorToRollout::Cancel(cancel));
            }
            Command::Weights { conn, version, slot, digest } => {
                self.to_rollout(conn, CoordinatorToRollout::Weights(WeightsReady { version, slot, digest }));
            }
            Command::Score { conn, work, attempt, cursor } => self.send_score(conn, work, attempt, cursor),
            Command::Keep { delivery, work } => self.keep(delivery, work),
            Command::Discard { delivery, why } => {
                if let Some(Delivery { ack, .. }) = self.deliveries.remove(&delivery) {
                    tracing::info!(target: "cohort::coordinator", why, "discarded");
                    ack.into_iter().for_each(Ack::accept);
                }
            }
            Command::Forget(works) => {
                for work in &works {
                    self.kept.remove(work);
                    self.partials.forget(work);
                }
            }
            Command::Load { conn, from, version } => self.send_load(conn, from, version),
            Command::Step { conn, intent, replay, hash } => self.send_step(conn, intent, replay, hash),
            Command::Publish { conn, version, slot } => {
                let epoch = self.state.epoch();
                self.to_learner(conn, CoordinatorToLearner::Publish(PublishRequest { epoch, version, slot }));
            }
            Command::Checkpoint { conn, version, cursor } => {
                let (epoch, cursor_json) = (self.state.epoch(), serde_json::json!({ "next_group": cursor }).to_string());
                self.to_learner(conn, CoordinatorToLearner::Checkpoint(CheckpointRequest { epoch, version, cursor_json }));
            }
            Command::Meet { conn, place } => self.to_learner(conn, CoordinatorToLearner::Meet(place)),
            Command::Replace { worker, pid, conn, why } => {
                tracing::warn!(target: "cohort::coordinator", %worker, why, "replacing");
                if let Some((_, outbox)) = self.conns.remove(&conn) {
                    outbox.close(&why);
                }
                self.args.replacer.replace(worker, pid, &why);
            }
            Command::Phase(phase) => self.phase(phase),
            Command::Committed(step) => self.committed(step).await,
            Command::Evaluated(report) => self.evaluated(report).await,
            Command::NoRoom { what, patience } => self.no_room(&what, patience),
            Command::RoomAgain { what, waited } => self.room_again(&what, waited),
            Command::Notice(text) => self.notice(text),
            Command::Finish(outcome) => self.outcome = Some(outcome),
        }
    }

    fn phase(&mut self, phase: RunPhase) {
        let now = Instant::now();
        self.report.phase(now, phase);
        self.told.news.emit(Progress::Phase(phase));
        self.last_status = None;
    }

    async fn committed(&mut self, step: StepId) {
        let Some(commit) = self.state.commits().get(&step).cloned() else { return };
        let progress = self.report.committed(Instant::now(), &commit);
        tracing::info!(target: "cohort::coordinator", step = step.0, reward = progress.reward, "committed");
        self.told.exports.write(Export::Commit(commit)).await;
        self.told.news.emit(Progress::Step(progress));
    }

    async fn evaluated(&mut self, report: EvaluationReport) {
        let report = self.examples.remove(&(report.step, report.greedy)).unwrap_or(report);
        self.report.evaluated(report.clone());
        self.told.exports.write(Export::Evaluation(report.clone())).await;
        self.told.news.emit(Progress::Evaluation(report));
    }

    fn notice(&self, text: String) {
        tracing::info!(target: "cohort::coordinator", text, "notice");
        self.told.news.emit(Progress::Notice(text));
    }

    fn publish_status(&mut self, now: Instant) {
        let apart = STATUS * (1 + u32::try_from(self.conns.len() / CROWD).unwrap_or(u32::MAX - 1));
        if self.last_status.is_some_and(|at| now.saturating_duration_since(at) < apart) {
            return;
        }
        self.last_status = Some(now);
        let own = (std::process::id(), self.args.incarnation);
        let status = self.report.status(&self.state, self.full_disk(now), own, (now, wall::unix_ms()));
        self.told.news.emit(Progress::Actors(status.actors.clone()));
        self.told.exports.status(status);
    }

    fn keep(&mut self, delivery: DeliveryId, work: Work) {
        let Some(Delivery { ack, body }) = self.deliveries.remove(&delivery) else { return };
        self.partials.forget(&work);
        let kept = self.kept.entry(work).or_default();
        match body {
            Body::Batch(batch, _) => kept.batch = Some(batch),
            Body::Reply(reply, _) => kept.reply = Some(reply),
        }
        ack.into_iter().for_each(Ack::accept);
    }

    fn entry(&mut self, fact: Fact) -> Option<Entry> {
        let (epoch, at_ms) = (self.state.epoch(), wall::unix_ms());
        Some(match fact {
            Fact::Opened { group, cursor } => Entry::Opened { group, cursor, epoch },
            Fact::Leased { group, attempt, worker } => Entry::Leased { group, attempt, worker, epoch, at_ms },
            Fact::Trajectories { delivery, .. } => match &mut self.deliveries.get_mut(&delivery)?.body {
                Body::Batch(_, accepted) => Entry::Trajectories(accepted.take()?),
                Body::Reply(..) => return None,
            },
            Fact::Scores { delivery, .. } => match &mut self.deliveries.get_mut(&delivery)?.body {
                Body::Reply(_, accepted) => Entry::Scores(accepted.take()?),
                Body::Batch(..) => return None,
            },
            Fact::Intent(intent) => Entry::Intent(intent),
            Fact::Commit(commit) => Entry::Commit(commit),
            Fact::Dropped { group, reason, detail } => Entry::Dropped { group, reason: reason.into(), detail },
            Fact::Checkpoint { version, dir, manifest_sha256 } => Entry::Checkpoint { version, dir, manifest_sha256, at_ms },
            Fact::Evaluation(report) => {
                let report = self.with_example(report);
                self.examples.insert((report.step, report.greedy), report.clone());
                Entry::Evaluation(report)
            }
        })
    }

    fn with_example(&self, mut report: EvaluationReport) -> EvaluationReport {
        let purpose = LeasePurpose::Eval { step: report.step, greedy: report.greedy };
        let first = self.kept.get(&Work { purpose, group: cohort_protocol::GroupId(0) });
        if let Some(Kept { batch: Some(batch), reply: Some(reply) }) = first
            && let (Some(trajectory), Some(outcome)) = (batch.trajectories.first(), reply.outcomes.first())
            && let ScoreOutcome::Scored(score) = &outcome.outcome
        {
            report.example = Some(example(0, &trajectory.turns, score.score));
        }
        report
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
