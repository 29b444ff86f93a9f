//! Who generates which group.
//!
//! Invariants
//! - **G1** a training lease goes out only after the ledger knows of it; a higher attempt fences every lower one.
//! - **G2** a result counts if it is of this epoch, of the current attempt and from the worker that holds the lease;
//!   everything else is acknowledged, counted and forgotten.
//! - **G3** leases are given only for the published version to workers that have it, and only while the wave lasts. In an
//!   asynchronous run a training group may begin under any version that is not too stale now; the worker takes newer weights
//!   in the middle of it.
use super::command::{Command, Fact};
use super::event::{ConnId, DeliveryId, Event, TrajectoriesSummary, Work};
use super::membership::MAX_LOSSES;
use super::staleness::{admissible, staleness};
use super::state::{ControllerState, Then};
use super::wave::{Generation, Group};
use cohort_protocol::{AttemptId, Epoch, PolicyVersion, Role, StepId};
use std::collections::BTreeSet;
use std::time::Instant;

impl ControllerState {
    /// Gives waiting groups to workers that have room.
    pub(super) fn assign_leases(&mut self, now: Instant, out: &mut Vec<Command>) {
        let (current, max_staleness) = (self.version(), self.plan.max_staleness);
        let published = self.published.is_some_and(|p| p.version == current);
        let halted = self.is_draining() || self.paused || self.room.is_lacking();
        if halted || !published && !self.plan.is_asynchronous() {
            return;
        }
        let Some(wave) = &mut self.wave else { return };
        wave.wake(now);
        let share = wave.len().div_ceil(usize::from(self.plan.rollout_workers.max(1)));
        let (mut facts, mut leases) = (Vec::new(), Vec::new());
        // Evaluation first: a step waits for it.
        for training in [false, true] {
            let floor = if training { max_staleness } else { 0 };
            let fit = |version: Option<PolicyVersion>, swapping: bool| match version {
                Some(version) if floor > 0 => staleness(current, version) <= floor,
                version => version == Some(current) && !swapping,
            };
            while let Some(work) = wave.agenda().to_generate(training) {
                let Some(conn) = self.members.choose(Role::Rollout, share, fit) else { break };
                let Some(worker) = self.members.change(conn, |member| {
                    member.load.insert(work);
                    member.worker
                }) else {
                    break;
                };
                // From here on it is expected to move, however long it has had nothing to do.
                self.members.moved(now, conn);
                leases.push((work, conn));
                wave.change(&work, |group| {
                    group.lease_attempt = AttemptId(group.lease_attempt.0 + 1);
                    group.generation = Generation::Recording { conn };
                    if training {
                        if !group.opened {
                            facts.push(Fact::Opened { group: work.group, cursor: group.cursor });
                            group.opened = true;
                            self.accounts.generated += 1;
                        }
                        facts.push(Fact::Leased { group: work.group, attempt: group.lease_attempt, worker });
                    }
                });
            }
        }
        let (recorded, at_once) =
            leases.into_iter().partition::<Vec<_>, _>(|(work, _)| work.is_training() && !planted!(LeaseBeforeDurable));
        for (work, conn) in at_once {
            self.send_lease(now, work, conn, out);
        }
        if !facts.is_empty() {
            self.record(facts, Then::Lease(recorded), out);
        }
    }

    /// The lease is on the disk: send it, if its worker is still there.
    pub(super) fn send_lease(&mut self, now: Instant, work: Work, conn: ConnId, out: &mut Vec<Command>) {
        let (current, floor) = (self.version(), if work.is_training() { self.plan.max_staleness } else { 0 });
        let Some(wave) = &mut self.wave else { return };
        if wave.get(&work).is_none_or(|group| group.generation != Generation::Recording { conn }) {
            return;
        }
        let holder = self.members.get(conn).filter(|m| m.load.contains(&work)).and_then(|m| m.version);
        let Some(version) = holder.filter(|version| staleness(current, *version) <= floor) else {
            wave.change(&work, |group| group.generation = Generation::Waiting { not_before: None });
            // It has other weights by now; what it does not do must not keep it from taking new ones.
            return self.release_rollout(now, conn, work);
        };
        let deadline = now + self.plan.deadlines.lease;
        let leased = wave.change(&work, |group| {
            group.generation = Generation::Leased { conn, deadline, version };
            (group.lease_attempt, group.cursor, group.samples)
        });
        let Some((attempt, cursor, samples)) = leased else { return };
        self.members.moved(now, conn);
        out.push(Command::Lease { conn, work, attempt, version, cursor, samples });
    }

    /// Trajectories came.
    pub(super) fn on_trajectories(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        let Event::Trajectories { conn, delivery, epoch, work, attempt, result } = event else { return };
        if let Err(why) = self.lease_holds(conn, epoch, work, attempt) {
            self.counters.fenced += 1;
            out.push(Command::Discard { delivery, why });
            return;
        }
        self.release_rollout(now, conn, work);
        self.members.achieved(conn);
        if let Ok(summary) = &result
            && let Some(why) = self.overtaken(work, summary)
        {
            out.push(Command::Discard { delivery, why: why.clone() });
            return self.begin_again(work, &why, out);
        }
        match result.and_then(|summary| self.check_batch(work, summary)) {
            Ok(summary) => self.accept_trajectories(conn, delivery, work, summary, out),
            Err(why) => {
                out.push(Command::Discard { delivery, why: why.clone() });
                self.generation_failed(now, work, &why, true, out);
            }
        }
    }

    /// A worker gave a lease back.
    pub(super) fn on_lease_failed(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        let Event::LeaseFailed { conn, epoch, work, attempt, error, retryable } = event else { return };
        if self.lease_holds(conn, epoch, work, attempt).is_ok() {
            self.release_rollout(now, conn, work);
            self.members.achieved(conn);
            self.generation_failed(now, work, &error, retryable, out);
        }
    }

    /// Accepted trajectories are on the disk.
    pub(super) fn trajectories_recorded(
        &mut self,
        work: Work,
        delivery: DeliveryId,
        summary: TrajectoriesSummary,
        out: &mut Vec<Command>,
    ) {
        out.push(Command::Keep { delivery, work });
        if let Some(wave) = &mut self.wave {
            wave.change(&work, |group| (group.generation, group.losses) = (Generation::Done(summary), 0));
        }
    }

    /// A rollout worker is gone: what it had is leased again at once.
    pub(super) fn rollout_lost(&mut self, conn: ConnId, load: &BTreeSet<Work>, why: &str, out: &mut Vec<Command>) {
        let Some(wave) = self.wave.as_mut().filter(|_| !planted!(LeaseKept)) else { return };
        let mut hopeless = None;
        for work in load {
            wave.change(work, |group| {
                if matches!(group.generation, Generation::Leased { conn: c, .. } if c == conn) {
                    group.generation = Generation::Waiting { not_before: None };
                    group.losses += 1;
                    self.counters.released += 1;
                    if group.losses >= MAX_LOSSES {
                        hopeless = Some((*work, group.cursor));
                    }
                }
            });
        }
        self.lost_too_often(hopeless, Role::Rollout, why, out);
    }

    /// Stops the run over a group that no worker survives, if there is one.
    pub(super) fn lost_too_often(&mut self, group: Option<(Work, u64)>, role: Role, why: &str, out: &mut Vec<Command>) {
        if let Some((work, cursor)) = group {
            let error = format!("{work} (row {cursor}) was lost with {MAX_LOSSES} {role} workers in a row, the last: {why}");
            self.fail(error, out);
        }
    }

    /// Leases whose deadline has passed are given to someone else.
    pub(super) fn expire_leases(&mut self, now: Instant, out: &mut Vec<Command>) {
        let late = self.wave.as_ref().map(|wave| wave.agenda().late_leases(now)).unwrap_or_default();
        for work in late {
            let Some(conn) = self.take_lease_back(work, out) else { continue };
            self.counters.released += 1;
            if let Some(member) = self.members.get(conn) {
                let limit = self.plan.deadlines.lease.as_secs();
                out.push(Command::Notice(format!("{} did not deliver {work} within {limit} s: leased again", member.worker)));
            }
        }
    }

    /// Takes all leases back (the run drains, or the engine they share is loading other weights).
    pub(super) fn withdraw_leases(&mut self, out: &mut Vec<Command>) {
        for work in self.wave.as_ref().map(|wave| wave.agenda().leased()).unwrap_or_default() {
            self.take_lease_back(work, out);
        }
    }

    /// The group needs a worker again. Gives whose lease it was.
    fn take_lease_back(&mut self, work: Work, out: &mut Vec<Command>) -> Option<ConnId> {
        let taken = self.wave.as_mut()?.change(&work, |group| {
            let Generation::Leased { conn, .. } = group.generation else { return None };
            group.generation = Generation::Waiting { not_before: None };
            Some((conn, group.lease_attempt))
        });
        let (conn, attempt) = taken.flatten()?;
        out.push(Command::CancelLease { conn, work, attempt });
        self.members.change(conn, |member| member.load.remove(&work));
        Some(conn)
    }

    fn lease_holds(&self, conn: ConnId, epoch: Epoch, work: Work, attempt: AttemptId) -> Result<(), String> {
        if epoch != self.epoch && !planted!(EpochIgnored) {
            return Err(format!("{work}: leased in epoch {epoch}, this is epoch {}", self.epoch));
        }
        let Some(group) = self.wave.as_ref().and_then(|w| w.get(&work)) else {
            return Err(format!("{work} is not wanted now"));
        };
        match group.generation {
            Generation::Leased { .. } if planted!(AttemptIgnored) => Ok(()),
            _ if attempt != group.lease_attempt => {
                Err(format!("{work}: attempt {attempt} is fenced by attempt {}", group.lease_attempt))
            }
            Generation::Leased { conn: holder, .. } if holder == conn => Ok(()),
            _ => Err(format!("{work}: attempt {attempt} is not leased to this connection")),
        }
    }

    /// Why a delivered group can be consumed no more, though nothing is wrong with it.
    fn overtaken(&self, work: Work, summary: &TrajectoriesSummary) -> Option<String> {
        let (oldest, version) = (summary.versions?.0, self.version());
        let late = self.plan.is_asynchronous() && work.is_training() && staleness(version, oldest) > self.plan.max_staleness;
        late.then(|| format!("its oldest token is of version {oldest}, the policy is at {version}"))
    }

    fn check_batch(&self, work: Work, summary: TrajectoriesSummary) -> Result<TrajectoriesSummary, String> {
        let wanted = self.wave.as_ref().and_then(|w| w.get(&work)).map_or(0, |g: &Group| g.samples);
        if summary.samples != wanted {
            return Err(format!("{work} was delivered with {} samples of {wanted}", summary.samples));
        }
        let floor = if work.is_training() { self.plan.max_staleness } else { 0 };
        // A sampler that shares the learner's engine may be ahead of the commit of a step that is decided upon.
        let decided = self.plan.is_asynchronous() && self.intents.contains_key(&StepId(self.version().0 + 1));
        let newest = if decided { self.version().next() } else { self.version() };
        if !admissible(newest, summary.versions, floor.saturating_add(u64::from(decided))) {
            let (oldest, newest) = summary.versions.unwrap_or_default();
            return Err(format!("{work} was sampled under versions {oldest} to {newest}, the policy is at {}", self.version()));
        }
        Ok(summary)
    }

    fn accept_trajectories(
        &mut self,
        conn: ConnId,
        delivery: DeliveryId,
        work: Work,
        summary: TrajectoriesSummary,
        out: &mut Vec<Command>,
    ) {
        self.members.change(conn, |member| member.delivered += 1);
        if !work.is_training() {
            return self.trajectories_recorded(work, delivery, summary, out);
        }
        if let Some(wave) = &mut self.wave {
            wave.change(&work, |group| group.generation = Generation::Storing);
        }
        let fact = Fact::Trajectories { group: work.group, delivery };
        self.record(vec![fact], Then::Trajectories { work, delivery, summary }, out);
        if planted!(AckBeforeDurable) {
            out.push(Command::Keep { delivery, work });
        }
    }

    fn release_rollout(&mut self, now: Instant, conn: ConnId, work: Work) {
        self.members.change(conn, |member| member.load.remove(&work));
        self.members.moved(now, conn);
    }

    fn generation_failed(&mut self, now: Instant, work: Work, error: &str, retryable: bool, out: &mut Vec<Command>) {
        let wait = self.group_failed(work, "generation_failed", error, retryable, out);
        if let (Some(wave), Some(wait)) = (&mut self.wave, wait) {
            wave.change(&work, |group| group.generation = Generation::Waiting { not_before: Some(now + wait) });
        }
    }
}
