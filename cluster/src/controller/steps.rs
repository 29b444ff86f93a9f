//! The learner's desk: one request at a time, always the one that the run needs next.
//!
//! Nothing is remembered about what the learner *was* doing when it was lost: the next request follows from what is
//! committed, what is published and what the learner holds now. In order:
//! load, replay of committed steps, publish, checkpoint, the next step. A checkpoint is saved after so many steps, and where
//! those since the last one would take too long to be taken again.
//!
//! Invariants
//! - **T1** a step is asked for only after its intent is recorded, and counted only after its commit is.
//! - **T2** a replayed step must give the committed digest; a loaded checkpoint that of its version. A checkpoint that
//!   does not, is damaged or cannot be read after all tries is passed over for the one before it; one that does not fit the
//!   run, and a replay that does not give its digest, stop the run.
//! - **T3** versions are published from the learner that holds exactly the committed version.
use super::command::{Command, Fact, Outcome};
use super::event::{ConnId, Event, Work};
use super::membership::Member;
use super::ring::{PublishedVersion, free_slot};
use super::state::{ControllerState, Then};
use crate::ledger::PastCheckpoint;
use cohort_protocol::messages::learner::{Fault, LoadFrom};
use cohort_protocol::{Epoch, PolicyVersion, Role, StepCommit, StepId};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// What the controller knows of the learner.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LearnerDesk {
    /// Its connection.
    pub conn: Option<ConnId>,
    /// It has said what it holds.
    pub reported: bool,
    /// Version in its engine that can be relied upon.
    pub holds: Option<PolicyVersion>,
    /// The request it works on.
    pub busy: Option<Request>,
    /// Where its followers find it.
    pub meeting: Option<String>,
    /// Digest of the base weights, once known.
    pub base_digest: Option<u64>,
    failures: u32,
    /// When it was asked for what it works on.
    asked: Option<Instant>,
    /// What the steps since the last checkpoint took it: so long takes it to take them again.
    unsaved: Duration,
    not_before: Option<Instant>,
    unusable: BTreeSet<PolicyVersion>,
}

/// A request to the learner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Load the state of a version.
    Load(PolicyVersion),
    /// Take a committed step again.
    Replay(StepId),
    /// Take a step.
    Step(StepId),
    /// Publish a version into a slot.
    Publish(PolicyVersion, u32),
    /// Save a version.
    Checkpoint(PolicyVersion),
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Load(version) => write!(f, "load {version}"),
            Self::Replay(step) => write!(f, "replay of step {step}"),
            Self::Step(step) => write!(f, "step {step}"),
            Self::Publish(version, slot) => write!(f, "publish {version} in slot {slot}"),
            Self::Checkpoint(version) => write!(f, "checkpoint {version}"),
        }
    }
}

impl LearnerDesk {
    /// Nothing is asked of it before then.
    pub(super) fn wait_until(&mut self, at: Instant) {
        self.not_before = Some(at);
    }

    /// Whether the run waits for something of a member.
    pub(super) fn awaits(&self, conn: ConnId, member: &Member) -> bool {
        let (lead, follows) = (self.conn == Some(conn), member.worker.role == Role::Learner && !member.worker.is_lead());
        // A lead that has not said what it holds is at a job of an earlier connection. A follower's counter moves with time,
        // too, unless it hangs.
        let asked = lead && (self.busy.is_some() || !self.reported);
        !member.load.is_empty() || member.swap.is_some() || asked || follows
    }
}

impl ControllerState {
    /// Asks the learner for what the run needs next.
    pub(super) fn advance_learner(&mut self, now: Instant, out: &mut Vec<Command>) {
        let Some(conn) = self.learner.conn.filter(|_| self.learner.reported) else { return };
        let waiting = self.learner.not_before.is_some_and(|at| at > now);
        if self.learner.busy.is_some() || self.committing.is_some() || waiting {
            return;
        }
        let Some(request) = self.next_request() else { return };
        let version = self.version();
        let command = match request {
            Request::Load(version) => {
                self.before_load(out);
                let from = match self.usable_checkpoint() {
                    Some(checkpoint) => LoadFrom::Checkpoint(checkpoint.dir.clone()),
                    None => LoadFrom::Base,
                };
                Command::Load { conn, from, version }
            }
            Request::Replay(step) | Request::Step(step) => {
                let Some(intent) = self.intents.get(&step).cloned() else {
                    return self.fail(format!("the intent of step {step} is not in the ledger: restore it from a copy"), out);
                };
                let replay = matches!(request, Request::Replay(_));
                let made = intent.base.next();
                let committed = self.commits.get(&step);
                let hash = committed.map_or(self.plan.checkpoint_at(made.0), |c| !c.weights_sha256.is_empty());
                Command::Step { conn, intent, replay, hash }
            }
            Request::Publish(version, slot) => Command::Publish { conn, version, slot },
            Request::Checkpoint(_) => Command::Checkpoint { conn, version, cursor: self.cursor_after(version) },
        };
        (self.learner.busy, self.learner.asked) = (Some(request), Some(now));
        self.members.moved(now, conn);
        out.push(command);
    }

    /// The first thing missing, in the order of the module's text.
    fn next_request(&self) -> Option<Request> {
        let version = self.version();
        let next = StepId(version.0 + 1);
        match self.learner.holds {
            Some(held) if held < version => return Some(Request::Replay(StepId(held.0 + 1))),
            Some(held) if held == version => {}
            // It took the step whose commit was lost with a coordinator: asked again, it answers from memory.
            Some(held) if held == version.next() && self.intents.contains_key(&next) => {
                return (!self.is_draining()).then_some(Request::Step(next));
            }
            _ => return Some(Request::Load(self.usable_checkpoint().map_or(PolicyVersion(0), |c| c.version))),
        }
        if self.wants_rollouts() && self.published.is_none_or(|p| p.version != version) {
            match free_slot(self.plan.slots, self.published, |slot| self.members.reads(slot)) {
                Some(slot) => return Some(Request::Publish(version, slot)),
                // A worker that is slow to take weights holds an asynchronous run up no longer than this one version.
                None if self.plan.is_asynchronous() => {}
                None => return None,
            }
        }
        if self.checkpoint_wanted() {
            return Some(Request::Checkpoint(version));
        }
        (!self.is_draining() && self.intents.contains_key(&next)).then_some(Request::Step(next))
    }

    /// Whether the current version must be saved before the run goes on or ends.
    pub(super) fn checkpoint_wanted(&self) -> bool {
        let version = self.version();
        let saved = || self.checkpoints.iter().any(|c| c.version == version && !self.learner.unusable.contains(&version));
        let long = self.plan.replay_at_most.is_some_and(|most| self.learner.unsaved >= most);
        (self.plan.checkpoint_at(version.0) || ((self.is_draining() || long) && version.0 > 0)) && !saved()
    }

    fn usable_checkpoint(&self) -> Option<&PastCheckpoint> {
        let usable = |c: &&PastCheckpoint| c.version <= self.version() && !self.learner.unusable.contains(&c.version);
        self.checkpoints.iter().filter(usable).max_by_key(|c| c.version)
    }

    /// A shared engine changes under the rollout workers: they must not be generating, and take the version again after.
    fn before_load(&mut self, out: &mut Vec<Command>) {
        if !self.plan.shared_engine {
            return;
        }
        self.withdraw_leases(out);
        self.published = None;
        let rollouts: Vec<ConnId> = self.members.role(Role::Rollout).map(|(conn, _)| conn).collect();
        for conn in rollouts {
            self.members.change(conn, |member| member.version = None);
        }
    }

    /// A learner said what it holds.
    pub(super) fn on_learner_ready(&mut self, conn: ConnId, version: Option<PolicyVersion>) {
        if self.learner.conn != Some(conn) {
            return;
        }
        self.learner.reported = true;
        self.learner.busy = None;
        self.learner.holds = version;
        self.learner.not_before = None;
    }

    /// The lead says where its followers find it: they are told.
    pub(super) fn on_meeting(&mut self, conn: ConnId, place: String, out: &mut Vec<Command>) {
        if self.learner.conn == Some(conn) {
            let followers = self.members.role(Role::Learner).filter(|(_, m)| !m.worker.is_lead());
            out.extend(followers.map(|(conn, _)| Command::Meet { conn, place: place.clone() }));
            self.learner.meeting = Some(place);
        }
    }

    /// The learner is gone; see the module's text for why nothing else is to be done.
    pub(super) fn learner_lost(&mut self) {
        self.learner = LearnerDesk {
            base_digest: self.learner.base_digest,
            unusable: std::mem::take(&mut self.learner.unusable),
            failures: self.learner.failures,
            unsaved: self.learner.unsaved,
            ..LearnerDesk::default()
        };
    }

    /// State is loaded.
    pub(super) fn on_loaded(&mut self, conn: ConnId, epoch: Epoch, version: PolicyVersion, digest: u64, out: &mut Vec<Command>) {
        if !self.answers(conn, epoch, |r| r == Request::Load(version)) {
            return;
        }
        let expected = self.known_digest(version);
        if let Some(expected) = expected.filter(|e| *e != digest) {
            let what = format!("version {version} was loaded with digest {digest:016x}, committed was {expected:016x}");
            if version.0 == 0 {
                return self.fail(format!("the base model has changed: {what}; restore its files"), out);
            }
            return self.pass_over(version, &what, out);
        }
        if version.0 == 0 {
            self.learner.base_digest = Some(digest);
        }
        self.learner.holds = Some(version);
        if version < self.version() {
            let missing = self.version().0 - version.0;
            out.push(Command::Notice(format!("the learner holds version {version}: {missing} committed steps are taken again")));
        }
    }

    /// A step is done.
    pub(super) fn on_stepped(&mut self, now: Instant, conn: ConnId, epoch: Epoch, commit: StepCommit, out: &mut Vec<Command>) {
        let step = commit.step;
        let took = self.learner.asked.map_or(Duration::ZERO, |asked| now.saturating_duration_since(asked));
        if self.answers(conn, epoch, |r| r == Request::Replay(step)) {
            let digest = commit.weights_digest;
            match self.commits.get(&step).map(|c| c.weights_digest) {
                Some(committed) if committed == digest => {
                    self.learner.holds = Some(commit.version);
                    if planted!(ReplayCounted) {
                        self.accounts.consumed += self.groups_of(step) as u64;
                    }
                }
                committed => self.fail(
                    format!(
                        "step {step} taken again gave weights {digest:016x}, committed was {:016x}: the machine or the build differs from the one that took it",
                        committed.unwrap_or_default()
                    ),
                    out,
                ),
            }
        } else if self.answers(conn, epoch, |r| r == Request::Step(step)) {
            if commit.version != self.version().next() {
                return self
                    .fail(format!("step {step} made version {}, expected was {}", commit.version, self.version().next()), out);
            }
            self.learner.holds = Some(commit.version);
            self.learner.unsaved += took;
            self.committing = Some(step);
            self.record(vec![Fact::Commit(commit.clone())], Then::Commit(commit), out);
        }
    }

    /// A commit is on the disk: the version is the run's.
    pub(super) fn commit_recorded(&mut self, commit: StepCommit, out: &mut Vec<Command>) {
        let step = commit.step;
        self.committing = None;
        self.commits.insert(step, commit);
        self.accounts.failed_in_a_row = 0;
        self.accounts.consumed += self.intents.get(&step).map_or(0, |i| i.groups.len() as u64);
        let works = self.intents.get(&step).map(|i| i.groups.iter().map(|g| Work::train(*g)).collect()).unwrap_or_default();
        // Its followers had their part in it.
        let ranks: Vec<ConnId> = self.members.role(Role::Learner).map(|(conn, _)| conn).collect();
        ranks.into_iter().for_each(|conn| self.members.achieved(conn));
        out.push(Command::Committed(step));
        out.push(Command::Forget(works));
    }

    /// Weights are in the ring.
    pub(super) fn on_published(&mut self, conn: ConnId, epoch: Epoch, p: PublishedVersion, out: &mut Vec<Command>) {
        if !self.answers(conn, epoch, |r| r == Request::Publish(p.version, p.slot)) {
            return;
        }
        match self.known_digest(p.version) {
            Some(expected) if expected != p.digest => {
                let (slot, digest, version) = (p.slot, p.digest, p.version);
                self.fail(
                    format!("slot {slot} holds version {version} with digest {digest:016x}, committed was {expected:016x}"),
                    out,
                );
            }
            _ => self.published = Some(p),
        }
    }

    /// A checkpoint is on the disk.
    pub(super) fn on_checkpoint_saved(
        &mut self,
        now: Instant,
        conn: ConnId,
        epoch: Epoch,
        saved: PastCheckpoint,
        out: &mut Vec<Command>,
    ) {
        if !self.answers(conn, epoch, |r| r == Request::Checkpoint(saved.version)) {
            return;
        }
        self.checkpoints_have_room(now, out);
        self.learner.unusable.remove(&saved.version);
        self.learner.unsaved = Duration::ZERO;
        let fact =
            Fact::Checkpoint { version: saved.version, dir: saved.dir.clone(), manifest_sha256: saved.manifest_sha256.clone() };
        self.checkpoints.push(saved);
        self.record(vec![fact], Then::Nothing, out);
    }

    /// A request failed.
    pub(super) fn on_learner_failed(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        let Event::LearnerFailed { conn, epoch, what, error, fatal, fault } = event else { return };
        let request = self.learner.busy;
        if !self.answers_any(conn, epoch, |_| true) {
            return;
        }
        if matches!(request, Some(Request::Step(_) | Request::Replay(_))) {
            // What a failed step leaves is the learner's to know; a fresh load is always right.
            self.learner.holds = None;
        }
        let full = matches!(request, Some(Request::Checkpoint(_))) && fault == Fault::System && !fatal;
        if full && self.await_room_for_checkpoint(now, &format!("learner: {what}: {error}"), out) {
            return;
        }
        self.learner.failures += 1;
        let hopeless = self.learner.failures >= self.plan.max_failures;
        if let Some(Request::Load(version)) = request.filter(|_| hopeless && !fatal)
            && version.0 > 0
        {
            self.learner.failures = 0;
            return self.pass_over(version, &error, out);
        }
        if fatal || hopeless {
            return self.fail_by(fault, format!("learner: {what}: {error}"), out);
        }
        let wait = self.plan.deadlines.retry * 2u32.saturating_pow(self.learner.failures.min(16));
        self.learner.not_before = Some(now + wait);
        out.push(Command::Notice(format!("learner: {what}: {error}; trying again in {:.1} s", wait.as_secs_f64())));
    }

    /// A checkpoint did not verify before its load.
    pub(super) fn on_checkpoint_damaged(&mut self, conn: ConnId, version: PolicyVersion, why: &str, out: &mut Vec<Command>) {
        if self.answers(conn, self.epoch, |r| r == Request::Load(version)) {
            self.pass_over(version, why, out);
        }
    }

    fn pass_over(&mut self, version: PolicyVersion, why: &str, out: &mut Vec<Command>) {
        self.learner.unusable.insert(version);
        out.push(Command::Notice(format!("checkpoint of version {version} is passed over for the one before it: {why}")));
    }

    /// Whether this is the answer to the open request; it is closed then. Only what takes the run further forgives what
    /// failed before: a load or a replay comes after every failure and every loss.
    fn answers(&mut self, conn: ConnId, epoch: Epoch, is: impl Fn(Request) -> bool) -> bool {
        let request = self.learner.busy;
        let answered = self.answers_any(conn, epoch, is);
        if answered && !matches!(request, Some(Request::Load(_) | Request::Replay(_))) {
            self.learner.failures = 0;
            self.members.achieved(conn);
        }
        answered
    }

    fn answers_any(&mut self, conn: ConnId, epoch: Epoch, is: impl Fn(Request) -> bool) -> bool {
        let answered = self.learner.conn == Some(conn)
            && (epoch == self.epoch || planted!(EpochIgnored))
            && self.learner.busy.is_some_and(is);
        if answered {
            self.learner.busy = None;
        }
        answered
    }

    fn known_digest(&self, version: PolicyVersion) -> Option<u64> {
        match version.0 {
            0 => self.learner.base_digest,
            n => self.commits.get(&StepId(n)).map(|c| c.weights_digest),
        }
    }

    /// Ends the run when nothing is left to do.
    pub(super) fn conclude(&mut self, out: &mut Vec<Command>) {
        if self.outcome.is_some() || !self.pending.is_empty() || self.committing.is_some() {
            return;
        }
        let outcome = if self.version().0 >= self.plan.steps && self.wave.is_none() && self.rounds_due().is_empty() {
            (!self.checkpoint_wanted()).then_some(Outcome::Finished)
        } else if self.is_draining() {
            // Without a learner at the committed version there is nothing to save that the ledger does not have.
            let can_save = self.learner.holds == Some(self.version()) && self.learner.conn.is_some();
            (self.learner.busy.is_none() && !(self.checkpoint_wanted() && can_save)).then_some(Outcome::Drained)
        } else {
            None
        };
        if let Some(outcome) = outcome {
            self.outcome = Some(outcome.clone());
            out.push(Command::Finish(outcome));
        }
    }
}
