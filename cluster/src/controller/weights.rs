//! Which rollout worker has which weights: who is told of a published version, and what follows from its answer.
//!
//! Invariants
//! - **W1** a worker is told of one version at a time, and in a synchronous run not before its leases are done.
//! - **W2** a swap that failed is tried again after a pause, from a slot that is written anew; not for ever.
use super::event::{Command, ConnId};
use super::state::ControllerState;
use cohort_protocol::PolicyVersion;
use std::time::Instant;

impl ControllerState {
    /// A worker says which weights it has.
    pub(super) fn on_rollout_ready(
        &mut self,
        now: Instant,
        conn: ConnId,
        version: Option<PolicyVersion>,
        capacity: u16,
        out: &mut Vec<Command>,
    ) {
        if !self.members.heard(now, conn) {
            return;
        }
        let refused = self.members.change(conn, |member| {
            (member.capacity, member.version) = (capacity, version);
            if let Some((told, _)) = member.swap.filter(|(told, _)| version != Some(*told)) {
                return Some(told);
            }
            if member.swap.take().is_some() {
                (member.swap_failures, member.swap_after) = (0, None);
            }
            None
        });
        match refused.flatten() {
            Some(told) => self.on_swap_failed(now, conn, told, "it says that it still has another version", out),
            None => self.members.moved(now, conn),
        }
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
        let retry = self.plan.deadlines.retry;
        let failed = self.members.change(conn, |member| {
            member.swap.take_if(|(told, _)| *told == version)?;
            member.swap_failures += 1;
            let wait = retry * 2u32.saturating_pow((member.swap_failures - 1).min(16));
            member.swap_after = Some(now + wait);
            Some((member.worker, member.swap_failures, wait))
        });
        let Some((worker, tries, wait)) = failed.flatten() else { return };
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
