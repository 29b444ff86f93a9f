//! Which rollout worker has which weights: who is told of a published version, and what follows from its answer.
//!
//! Invariants
//! - **W1** a worker is told of one version at a time, and in a synchronous run not before its leases are done. Its answer is
//!   that it has it, or that it failed; what else it says of its weights it said before it was told.
//! - **W2** a swap that failed is tried again after a pause, from a slot that is written anew; not for ever. That a version has
//!   been followed by another before a slow worker had it is no failure: the worker is told of the newer one.
use super::command::Command;
use super::event::ConnId;
use super::state::ControllerState;
use cohort_protocol::PolicyVersion;
use std::time::Instant;

impl ControllerState {
    /// A worker says which weights it has.
    pub(super) fn on_rollout_ready(&mut self, now: Instant, conn: ConnId, version: Option<PolicyVersion>, capacity: u16) {
        if !self.members.heard(now, conn) {
            return;
        }
        self.members.change(conn, |member| {
            (member.capacity, member.version) = (capacity, version);
            // W1.
            if member.swap.take_if(|(told, _)| version == Some(*told)).is_some() {
                (member.swap_failures, member.swap_after) = (0, None);
            }
        });
        self.members.moved(now, conn);
    }

    /// W2.
    pub(super) fn on_swap_failed(
        &mut self,
        now: Instant,
        conn: ConnId,
        version: PolicyVersion,
        error: &str,
        out: &mut Vec<Command>,
    ) {
        self.members.heard(now, conn);
        let (retry, outrun) = (self.plan.deadlines.retry, version < self.version());
        let failed = self.members.change(conn, |member| {
            member.swap.take_if(|(told, _)| *told == version)?;
            member.swap_failures += u32::from(!outrun);
            let wait = retry * 2u32.saturating_pow(member.swap_failures.saturating_sub(1).min(16));
            member.swap_after = Some(now + wait);
            Some((member.worker, member.swap_failures, wait))
        });
        let Some((worker, tries, wait)) = failed.flatten() else { return };
        if outrun {
            let text = format!("{worker} did not take version {version} in time: {error}; newer ones are there");
            return out.push(Command::Notice(text));
        }
        self.counters.failures += 1;
        if tries >= self.plan.max_failures {
            return self.fail(format!("{worker} could not take version {version}, tried {tries} times: {error}"), out);
        }
        out.push(Command::Notice(format!(
            "{worker} could not take version {version}: {error}; published again, next try in {:.1} s",
            wait.as_secs_f64()
        )));
        if self.published.is_some_and(|p| p.version == version) {
            self.published = None;
        }
    }

    /// Tells rollout workers of the published version, once each.
    pub(super) fn assign_weights(&mut self, now: Instant, out: &mut Vec<Command>) {
        let Some(p) = self.published.filter(|p| p.version == self.version() && self.wants_rollouts()) else { return };
        for conn in self.members.without(p.version, self.plan.is_asynchronous()) {
            let rested = self.members.get(conn).is_some_and(|m| m.swap_after.is_none_or(|at| at <= now));
            if rested {
                self.members.change(conn, |member| member.swap = Some((p.version, p.slot)));
                self.members.moved(now, conn);
                out.push(Command::Weights { conn, version: p.version, slot: p.slot, digest: p.digest });
            }
        }
    }
}
