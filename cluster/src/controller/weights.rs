//! Which rollout worker has which weights: who is told of a published version, and what follows from its answer.
//!
//! Invariants
//! - **W1** a worker is told of one version at a time, and in a synchronous run not before its leases are done.
//! - **W2** a swap that failed is tried again after a pause, from a slot that is written anew; not for ever. That a version has
//!   been followed by another before a slow worker had it is no failure: the worker is told of the newer one.
use super::event::{Command, ConnId};
use super::state::ControllerState;
use cohort_protocol::{PolicyVersion, Role};
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
        let Some(member) = self.members.heard(now, conn) else { return };
        member.capacity = capacity;
        member.version = version;
        match member.swap {
            Some((told, _)) if version != Some(told) => {
                self.on_swap_failed(now, conn, told, "it says that it still has another version", out);
            }
            swap => {
                member.swap = None;
                if swap.is_some() {
                    (member.swap_failures, member.swap_after) = (0, None);
                }
                self.members.moved(now, conn);
            }
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
        let outrun = version < self.version();
        let Some(member) = self.members.heard(now, conn).filter(|m| m.swap.is_some_and(|(told, _)| told == version)) else {
            return;
        };
        member.swap = None;
        if outrun {
            member.swap_after = Some(now + self.plan.deadlines.retry);
            let worker = member.worker;
            return out.push(Command::Notice(format!(
                "{worker} did not take version {version} in time: {error}; newer ones are there"
            )));
        }
        member.swap_failures += 1;
        let wait = self.plan.deadlines.retry * 2u32.saturating_pow((member.swap_failures - 1).min(16));
        member.swap_after = Some(now + wait);
        let (worker, tries) = (member.worker, member.swap_failures);
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
        let (mut told, asynchronous) = (Vec::new(), self.plan.is_asynchronous());
        for (conn, member) in self.members.iter_mut() {
            let fit = member.worker.role == Role::Rollout && member.capacity > 0;
            let rested = member.swap_after.is_none_or(|at| at <= now);
            if fit
                && rested
                && member.version != Some(p.version)
                && member.swap.is_none()
                && (member.load.is_empty() || asynchronous)
            {
                member.swap = Some((p.version, p.slot));
                told.push(conn);
                out.push(Command::Weights { conn, version: p.version, slot: p.slot, digest: p.digest });
            }
        }
        told.into_iter().for_each(|conn| self.members.moved(now, conn));
    }
}
