//! The run's decisions, pure: events in, commands out; no IO, no clock, no randomness.
//!
//! Invariants
//! - **D1** every group that was ever leased for training is consumed by exactly one step, dropped with a reason, or in
//!   flight; step `n` of a synchronous run consumes the groups that follow those of step `n - 1`, ordered by id.
//! - **D2** nothing is acted upon before the ledger has it: each [`Command::Record`] names what follows it.
//! - **D3** the sequence of intents of a synchronous run is the same for any number of workers, any order of events, any losses
//!   and restarts; that of an asynchronous one ([`super::stream`]) is recorded.
use super::accounts::{Accounts, Idleness};
use super::command::{Command, Fact, Outcome};
use super::event::{ConnId, DeliveryId, Event, RecordId, ScoresSummary, TrajectoriesSummary, Work};
use super::membership::{Member, Membership};
use super::plan::{Plan, Standing};
use super::ring::PublishedVersion;
use super::room::Room;
use super::steps::{LearnerDesk, Request};
use super::wave::{Generation, Wave, WaveKind};
use crate::ledger::{Past, PastCheckpoint, PastGroup};
use crate::progress::{EvaluationReport, RunPhase};
use cohort_protocol::messages::learner::Fault;
use cohort_protocol::{AttemptId, Epoch, GroupId, PolicyVersion, Role, StepCommit, StepId, StepIntent, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What follows when facts are durable.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Then {
    Lease(Vec<(Work, ConnId)>),
    Trajectories { work: Work, delivery: DeliveryId, summary: TrajectoriesSummary },
    Scores { work: Work, delivery: DeliveryId, summary: ScoresSummary },
    Intent(StepIntent),
    Commit(StepCommit),
    Evaluations(Vec<EvaluationReport>),
    Nothing,
}

/// Things counted for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Results refused: late, doubled, of another epoch.
    pub fenced: u64,
    /// Leases and requests given again.
    pub released: u64,
    /// Tries that failed with an answer.
    pub failures: u64,
}

/// The controller.
#[derive(Debug, Clone)]
pub struct ControllerState {
    pub(super) plan: Plan,
    pub(super) epoch: Epoch,
    pub(super) members: Membership,
    pub(super) learner: LearnerDesk,
    pub(super) published: Option<PublishedVersion>,
    pub(super) wave: Option<Wave>,
    pub(super) intents: BTreeMap<StepId, StepIntent>,
    pub(super) commits: BTreeMap<StepId, StepCommit>,
    pub(super) committing: Option<StepId>,
    pub(super) checkpoints: Vec<PastCheckpoint>,
    pub(super) evaluations: BTreeSet<(u64, bool)>,
    pub(super) pending: BTreeMap<RecordId, Then>,
    /// An intent is on its way to the disk.
    pub(super) deciding: bool,
    pub(super) counters: Counters,
    pub(super) accounts: Accounts,
    idleness: Idleness,
    pub(super) outcome: Option<Outcome>,
    pub(super) open: BTreeMap<GroupId, PastGroup>,
    pub(super) next_group: u64,
    pub(super) next_cursor: u64,
    next_record: u64,
    pub(super) draining: bool,
    pub(super) paused: bool,
    pub(super) room: Room,
    phase: Option<RunPhase>,
}

impl ControllerState {
    /// A new incarnation that knows the run's past.
    #[must_use]
    pub fn new(plan: Plan, epoch: Epoch, past: Past) -> Self {
        let accounts = Accounts::of(&past);
        let evaluations = past.evaluations.iter().map(|e| (e.step, e.greedy)).collect();
        let mut open = past.open_groups;
        // Groups of an intent without commit are spoken for: that very step is taken again.
        for intent in past.intents.values().filter(|i| !past.commits.contains_key(&i.step) && !planted!(IntentForgotten)) {
            intent.groups.iter().for_each(|group| {
                open.remove(group);
            });
        }
        if planted!(GroupForgotten) {
            open.pop_first();
        }
        Self {
            plan,
            epoch,
            members: Membership::default(),
            learner: LearnerDesk::default(),
            published: None,
            wave: None,
            intents: past.intents,
            commits: past.commits,
            committing: None,
            checkpoints: past.checkpoints,
            evaluations,
            pending: BTreeMap::new(),
            deciding: false,
            counters: Counters::default(),
            accounts,
            idleness: Idleness::default(),
            outcome: None,
            open,
            next_group: past.next_group,
            next_cursor: past.next_cursor,
            next_record: 0,
            draining: false,
            paused: false,
            room: Room::default(),
            phase: None,
        }
    }

    /// Takes one event and appends what is to be done, in order.
    pub fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        if self.outcome.is_some() {
            return;
        }
        self.idleness.pass(now, self.learner.busy.is_some(), self.members.working_rollouts(), self.plan.rollout_workers);
        match event {
            Event::Connected { conn, worker, incarnation, pid } => self.on_connected(now, conn, worker, incarnation, pid, out),
            Event::Known(workers) => self.members.expect(now, self.plan.deadlines.silence, workers),
            Event::Disconnected { conn, why } => self.on_disconnected(now, conn, &why, out),
            Event::Beat { conn, progress } => self.members.beat(now, conn, progress),
            Event::RolloutReady { conn, version, capacity } => self.on_rollout_ready(now, conn, version, capacity),
            Event::SwapFailed { conn, version, error } => self.on_swap_failed(now, conn, version, &error, out),
            Event::Trajectories { .. } => self.on_trajectories(now, event, out),
            Event::LeaseFailed { .. } => self.on_lease_failed(now, event, out),
            Event::RewardReady { conn, capacity } => self.on_reward_ready(now, conn, capacity),
            Event::Scores { .. } => self.on_scores(now, event, out),
            Event::LearnerReady { conn, version } => self.on_learner_ready(conn, version),
            Event::Meeting { conn, place } => self.on_meeting(conn, place, out),
            Event::Loaded { conn, epoch, version, digest } => self.on_loaded(conn, epoch, version, digest, out),
            Event::CheckpointDamaged { conn, version, why } => self.on_checkpoint_damaged(conn, version, &why, out),
            Event::Stepped { conn, epoch, commit } => self.on_stepped(now, conn, epoch, commit, out),
            Event::Published { conn, epoch, version, slot, digest } => {
                self.on_published(conn, epoch, PublishedVersion { version, slot, digest }, out);
            }
            Event::CheckpointSaved { conn, epoch, version, dir, manifest_sha256 } => {
                self.on_checkpoint_saved(now, conn, epoch, PastCheckpoint { version, dir, manifest_sha256 }, out);
            }
            Event::LearnerFailed { .. } => self.on_learner_failed(now, event, out),
            Event::Recorded(id) => self.on_recorded(now, id, out),
            Event::NoRoom { what, error } => self.on_no_room(now, what, error, out),
            Event::Failed { error } => self.fail(error, out),
            Event::Standing(standing) => self.on_standing(standing, out),
            Event::DrainRequested { reason } => self.on_drain(&reason, out),
            Event::Tick => self.on_tick(now, out),
        }
        self.advance(now, out);
    }

    /// What the agent says. Groups that have begun go on through a pause.
    fn on_standing(&mut self, standing: Standing, out: &mut Vec<Command>) {
        if let Some(count) = standing.rollout_workers {
            self.plan.rollout_workers = count;
        }
        if self.paused != standing.paused {
            self.paused = standing.paused;
            let text = if self.paused { "paused: what has begun is finished, nothing else begins" } else { "resumed" };
            out.push(Command::Notice(text.to_owned()));
        }
    }

    /// The committed policy version.
    #[must_use]
    pub fn version(&self) -> PolicyVersion {
        PolicyVersion(self.commits.last_key_value().map_or(0, |(step, _)| step.0))
    }

    /// The coordinator's incarnation.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Commits by step.
    #[must_use]
    pub fn commits(&self) -> &BTreeMap<StepId, StepCommit> {
        &self.commits
    }

    /// Who is connected.
    #[must_use]
    pub fn members(&self) -> &Membership {
        &self.members
    }

    /// What the learner is asked for at the moment.
    #[must_use]
    pub fn learner_request(&self) -> Option<Request> {
        self.learner.busy
    }

    /// Version the learner holds.
    #[must_use]
    pub fn learner_version(&self) -> Option<PolicyVersion> {
        self.learner.holds
    }

    /// Things counted.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What became of the groups.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Groups that a step consumes.
    #[must_use]
    pub fn groups_of(&self, step: StepId) -> usize {
        self.intents.get(&step).map_or(0, |intent| intent.groups.len())
    }

    /// Complete groups that wait for a step.
    #[must_use]
    pub fn ready_groups(&self) -> usize {
        self.wave.as_ref().map_or(0, |wave| wave.agenda().training().1)
    }

    /// Parts of the time since the last call in which the learner, and in the mean a rollout worker, had nothing to do.
    pub fn take_idleness(&mut self) -> Option<(f64, f64)> {
        self.idleness.take()
    }

    /// The current attempt at a group, if it is leased.
    #[must_use]
    pub fn leased_attempt(&self, work: &Work) -> Option<u32> {
        let group = self.wave.as_ref()?.get(work)?;
        matches!(group.generation, Generation::Leased { .. }).then_some(group.lease_attempt.0)
    }

    /// Whether what was said in a group under some lease may be gone on from: the lease holds, or nobody has one and the
    /// group is still to be generated, here or, where the run has not come to it yet, before its end.
    #[must_use]
    pub fn may_go_on(&self, work: &Work, epoch: Epoch, attempt: AttemptId) -> bool {
        match self.wave.as_ref().and_then(|wave| wave.get(work)).map(|group| (&group.generation, group.lease_attempt)) {
            Some((Generation::Leased { .. }, holds)) => epoch == self.epoch && attempt == holds || planted!(PartsUnfenced),
            Some((Generation::Waiting { .. } | Generation::Recording { .. }, _)) => true,
            Some(_) => false,
            None => work.is_training() && self.open.get(&work.group).is_some_and(|group| group.trajectories.is_none()),
        }
    }

    /// What the run is busy with.
    #[must_use]
    pub fn phase(&self) -> RunPhase {
        if self.outcome.is_some() {
            return RunPhase::Finished;
        }
        if self.draining {
            return RunPhase::Draining;
        }
        match self.learner.busy {
            Some(Request::Step(_)) => RunPhase::Stepping,
            Some(Request::Replay(_)) => RunPhase::Replaying,
            Some(Request::Publish(..)) => RunPhase::Publishing,
            _ if self.learner.holds != Some(self.version()) && self.wave.is_none() => RunPhase::Loading,
            Some(Request::Checkpoint(_)) if self.version().0 >= self.plan.steps => RunPhase::Checkpointing,
            _ => match self.wave.as_ref().map(|w| &w.kind) {
                Some(WaveKind::Evaluation(_)) => RunPhase::Evaluating,
                Some(WaveKind::Stream(rounds)) if !rounds.is_empty() => RunPhase::Evaluating,
                Some(WaveKind::Training(_) | WaveKind::Stream(_)) => RunPhase::Collecting,
                None => self.phase.unwrap_or(RunPhase::Loading),
            },
        }
    }

    /// Whether the run was asked to stop.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether rollout workers are needed at the current version.
    pub(super) fn wants_rollouts(&self) -> bool {
        let step_in_hand = self.intents.contains_key(&StepId(self.version().0 + 1));
        let training = self.version().0 < self.plan.steps && (!step_in_hand || self.plan.is_asynchronous());
        !self.draining && (training || !self.rounds_due().is_empty() || self.wave.is_some())
    }

    /// Orders facts to be recorded.
    pub(super) fn record(&mut self, facts: Vec<Fact>, then: Then, out: &mut Vec<Command>) {
        let id = RecordId(self.next_record);
        self.next_record += 1;
        self.deciding |= matches!(then, Then::Intent(_));
        self.pending.insert(id, then);
        out.push(Command::Record { id, facts });
    }

    /// Stops the run for good.
    pub(super) fn fail(&mut self, error: String, out: &mut Vec<Command>) {
        self.fail_by(Fault::Worker, error, out);
    }

    /// Stops the run for good by what is to blame.
    pub(super) fn fail_by(&mut self, fault: Fault, error: String, out: &mut Vec<Command>) {
        if self.outcome.is_none() {
            let outcome = Outcome::Failed { error, fault };
            self.outcome = Some(outcome.clone());
            out.push(Command::Finish(outcome));
        }
    }

    /// First group that no step up to `version` has consumed: the same for every run, however it was disturbed.
    pub(super) fn cursor_after(&self, version: PolicyVersion) -> u64 {
        let consumed = self.intents.range(..=StepId(version.0)).flat_map(|(_, intent)| &intent.groups);
        consumed.max().map_or(0, |group| group.0 + 1)
    }

    fn on_connected(&mut self, now: Instant, conn: ConnId, worker: WorkerId, incarnation: u32, pid: u32, out: &mut Vec<Command>) {
        if let Some(older) = self.members.join(now, conn, worker, incarnation, pid) {
            self.on_disconnected(now, older, "it connected again", out);
        }
        if worker.is_lead() {
            self.learner.conn = Some(conn);
            self.learner.reported = false;
        } else if let (Role::Learner, Some(place)) = (worker.role, self.learner.meeting.clone()) {
            out.push(Command::Meet { conn, place });
        }
    }

    fn on_disconnected(&mut self, now: Instant, conn: ConnId, why: &str, out: &mut Vec<Command>) {
        let needed = self.members.get(conn).is_some_and(|m| self.learner.awaits(conn, m));
        let Some(Member { worker, load, .. }) = self.members.leave(now, conn) else { return };
        out.push(Command::Notice(match load.len() {
            0 => format!("{worker} is gone: {why}"),
            n => format!("{worker} is gone: {why}; {n} groups are given to others"),
        }));
        match worker.role {
            Role::Rollout => self.rollout_lost(conn, &load, why, out),
            Role::Reward => self.reward_lost(conn, &load, why, out),
            Role::Learner if self.learner.conn == Some(conn) => self.learner_lost(),
            Role::Learner | Role::Coordinator | Role::Node | Role::Keeper => {}
        }
        if needed && let Some(error) = self.members.count_loss(worker, why) {
            self.fail(error, out);
        }
    }

    fn on_reward_ready(&mut self, now: Instant, conn: ConnId, capacity: u16) {
        self.members.heard(now, conn);
        self.members.change(conn, |member| member.capacity = capacity);
    }

    fn on_recorded(&mut self, now: Instant, id: RecordId, out: &mut Vec<Command>) {
        self.ledger_has_room(now, out);
        match self.pending.remove(&id) {
            Some(Then::Lease(leases)) => leases.into_iter().for_each(|(work, conn)| self.send_lease(now, work, conn, out)),
            Some(Then::Trajectories { work, delivery, summary }) => self.trajectories_recorded(work, delivery, summary, out),
            Some(Then::Scores { work, delivery, summary }) => self.scores_recorded(work, delivery, summary, out),
            Some(Then::Intent(intent)) => {
                self.deciding = false;
                if !self.plan.is_asynchronous() {
                    self.wave = None;
                }
                self.intents.insert(intent.step, intent);
            }
            Some(Then::Commit(commit)) => self.commit_recorded(commit, out),
            Some(Then::Evaluations(reports)) => self.evaluations_recorded(reports, out),
            Some(Then::Nothing) | None => {}
        }
    }

    fn on_drain(&mut self, reason: &str, out: &mut Vec<Command>) {
        if !self.draining {
            self.draining = true;
            out.push(Command::Notice(format!("stopping in order: {reason}")));
            self.withdraw_leases(out);
        }
    }

    fn on_tick(&mut self, now: Instant, out: &mut Vec<Command>) {
        self.expire_leases(now, out);
        self.expire_scores(now, out);
        self.give_up_waiting(now, out);
        self.members.check(now, &self.plan.deadlines, |conn, m| self.learner.awaits(conn, m), out);
        let replaced: Vec<(ConnId, WorkerId, String)> = out
            .iter()
            .filter_map(|c| match c {
                Command::Replace { conn, worker, why, .. } => Some((*conn, *worker, why.clone())),
                _ => None,
            })
            .collect();
        self.members.miss(now, self.plan.deadlines.silence, out);
        for (conn, worker, why) in replaced {
            // One that is idle holds nobody up; one that never got ready does.
            let needed = self.members.get(conn).is_some_and(|m| match worker.role {
                Role::Learner => !self.learner.reported || self.learner.awaits(conn, m),
                _ => m.capacity == 0 || self.learner.awaits(conn, m),
            });
            self.on_disconnected(now, conn, &why, out);
            if needed && let Some(error) = self.members.count_replacement(worker, &why) {
                self.fail(error, out);
            }
        }
    }

    /// Does whatever can be done now.
    fn advance(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.outcome.is_none() {
            self.advance_wave(out);
            self.conclude(out);
        }
        if self.outcome.is_none() {
            self.advance_learner(now, out);
            self.assign_weights(now, out);
            self.assign_leases(now, out);
            self.assign_scores(now, out);
        }
        let phase = self.phase();
        if self.phase != Some(phase) {
            self.phase = Some(phase);
            out.push(Command::Phase(phase));
        }
    }
}
