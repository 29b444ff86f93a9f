//! Who scores which group, and what a failure to score means.
//!
//! Invariants
//! - **C1** a group is scored from accepted trajectories only, whole, by one worker; attempts fence as for leases.
//! - **C2** a score is accepted only if every sample has one; a grader that failed is asked again, then the run stops
//!   ([`OnFailure::Stop`], and always where it is one of an evaluation) or the group is dropped with its reason, so often in a
//!   row at most. It never reads as reward 0.
//! - **C3** the deadline of a request counts from the worker's last progress: a grader within its own limits is waited for.
use super::command::{Command, Fact};
use super::event::{ConnId, DeliveryId, Event, ScoresSummary, Work};
use super::membership::MAX_LOSSES;
use super::plan::OnFailure;
use super::state::{ControllerState, Then};
use super::wave::Scoring;
use cohort_protocol::{AttemptId, Epoch, Role};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Groups dropped for a failure without a step in between, after which the run stops: the next one would fail as well.
const MAX_DROPS: u32 = 30;
/// The same, times the groups of a step.
const MAX_DROPS_OF_A_STEP: u32 = 3;

impl ControllerState {
    /// Gives generated groups to reward workers that have room.
    pub(super) fn assign_scores(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.is_draining() {
            return;
        }
        let Some(wave) = &mut self.wave else { return };
        wave.wake(now);
        let deadline = now + self.plan.deadlines.score;
        while let Some(work) = wave.agenda().to_score() {
            let Some(conn) = self.members.choose(Role::Reward, usize::MAX, |_, _| true) else { break };
            self.members.change(conn, |member| member.load.insert(work));
            self.members.moved(now, conn);
            let asked = wave.change(&work, |group| {
                group.score_attempt = AttemptId(group.score_attempt.0 + 1);
                group.scoring = Scoring::Asked { conn, deadline };
                Command::Score { conn, work, attempt: group.score_attempt, cursor: group.cursor }
            });
            out.extend(asked);
        }
    }

    /// Scores came.
    pub(super) fn on_scores(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        let Event::Scores { conn, delivery, epoch, work, attempt, summary } = event else { return };
        if let Err(why) = self.request_holds(conn, epoch, work, attempt) {
            self.counters.fenced += 1;
            out.push(Command::Discard { delivery, why });
            return;
        }
        self.members.change(conn, |member| {
            member.load.remove(&work);
            member.delivered += 1;
        });
        self.members.moved(now, conn);
        self.members.achieved(conn);
        if let Some((error, retryable)) = &summary.failure {
            out.push(Command::Discard { delivery, why: error.clone() });
            return self.scoring_failed(now, work, error, *retryable, out);
        }
        let Some(wave) = &mut self.wave else { return };
        let Some(samples) = wave.get(&work).map(|group| group.samples) else { return };
        if summary.scores.len() != usize::from(samples) {
            let error = format!("{} scores for {samples} samples", summary.scores.len());
            out.push(Command::Discard { delivery, why: error.clone() });
            return self.scoring_failed(now, work, &error, false, out);
        }
        if !work.is_training() {
            return self.scores_recorded(work, delivery, summary, out);
        }
        wave.change(&work, |group| group.scoring = Scoring::Storing);
        self.record(vec![Fact::Scores { group: work.group, delivery }], Then::Scores { work, delivery, summary }, out);
    }

    /// Accepted scores are on the disk.
    pub(super) fn scores_recorded(&mut self, work: Work, delivery: DeliveryId, summary: ScoresSummary, out: &mut Vec<Command>) {
        out.push(Command::Keep { delivery, work });
        if let Some(wave) = &mut self.wave {
            wave.change(&work, |group| group.scoring = Scoring::Done(summary));
        }
    }

    /// A reward worker is gone: what it had is asked of another.
    pub(super) fn reward_lost(&mut self, conn: ConnId, load: &BTreeSet<Work>, why: &str, out: &mut Vec<Command>) {
        let Some(wave) = &mut self.wave else { return };
        let mut hopeless = None;
        for work in load {
            wave.change(work, |group| {
                if matches!(group.scoring, Scoring::Asked { conn: c, .. } if c == conn) {
                    group.scoring = Scoring::Waiting { not_before: None };
                    group.losses += 1;
                    self.counters.released += 1;
                    if group.losses >= MAX_LOSSES {
                        hopeless = Some((*work, group.cursor));
                    }
                }
            });
        }
        self.lost_too_often(hopeless, Role::Reward, why, out);
    }

    /// Requests whose deadline has passed go to another worker, as a failure of the grader.
    pub(super) fn expire_scores(&mut self, now: Instant, out: &mut Vec<Command>) {
        let Some(wave) = &self.wave else { return };
        let limit = self.plan.deadlines.score;
        let still = |conn| self.members.get(conn).is_none_or(|m| m.moved() + limit <= now);
        let asked = wave.agenda().late_scores(now).into_iter().filter_map(|work| match wave.get(&work)?.scoring {
            Scoring::Asked { conn, .. } => Some((work, conn)),
            _ => None,
        });
        let late: Vec<(Work, ConnId)> = asked.filter(|(_, conn)| still(*conn)).collect();
        for (work, conn) in late {
            let name = self.members.change(conn, |member| {
                member.load.remove(&work);
                member.worker.to_string()
            });
            let name = name.unwrap_or_else(|| "a lost worker".into());
            let error = format!("{name} gave no score within {} s", self.plan.deadlines.score.as_secs());
            self.scoring_failed(now, work, &error, true, out);
        }
    }

    fn request_holds(&self, conn: ConnId, epoch: Epoch, work: Work, attempt: AttemptId) -> Result<(), String> {
        if epoch != self.epoch && !planted!(EpochIgnored) {
            return Err(format!("{work}: to be scored in epoch {epoch}, this is epoch {}", self.epoch));
        }
        let Some(group) = self.wave.as_ref().and_then(|w| w.get(&work)) else {
            return Err(format!("{work} is not wanted now"));
        };
        match group.scoring {
            _ if attempt != group.score_attempt => {
                Err(format!("{work}: scoring attempt {attempt} is fenced by attempt {}", group.score_attempt))
            }
            Scoring::Asked { conn: holder, .. } if holder == conn => Ok(()),
            _ => Err(format!("{work}: scoring attempt {attempt} was not asked of this connection")),
        }
    }

    fn scoring_failed(&mut self, now: Instant, work: Work, error: &str, retryable: bool, out: &mut Vec<Command>) {
        let wait = self.group_failed(work, "score_failed", error, retryable, out);
        if let (Some(wave), Some(wait)) = (&mut self.wave, wait) {
            wave.change(&work, |group| group.scoring = Scoring::Waiting { not_before: Some(now + wait) });
        }
    }

    /// Counts a failure of a group. Returns how long to wait before the next try; `None`: there is none.
    pub(super) fn group_failed(
        &mut self,
        work: Work,
        reason: &'static str,
        error: &str,
        retryable: bool,
        out: &mut Vec<Command>,
    ) -> Option<Duration> {
        let (cursor, tries) = self.wave.as_mut()?.change(&work, |group| {
            group.failures += 1;
            (group.cursor, group.failures)
        })?;
        self.counters.failures += 1;
        if retryable && tries < self.plan.max_failures {
            let wait = self.plan.deadlines.retry * 2u32.saturating_pow((tries - 1).min(16));
            out.push(Command::Notice(format!("{work}: {error}; trying again in {:.1} s", wait.as_secs_f64())));
            return Some(wait);
        }
        match self.plan.on_failure {
            OnFailure::Drop if work.is_training() => self.drop_group(work, reason, error, out),
            OnFailure::Drop | OnFailure::Stop => {
                let error = format!(
                    "{work} (row {cursor}) failed at try {tries}: {error}; nothing is lost: mend the cause, then `cluster launch --resume`"
                );
                self.fail(error, out);
            }
        }
        None
    }

    fn drop_group(&mut self, work: Work, reason: &'static str, error: &str, out: &mut Vec<Command>) {
        if self.remove_group(work, out).is_none() {
            return;
        }
        self.accounts.dropped(reason);
        self.accounts.failed_in_a_row += 1;
        out.push(Command::Notice(format!("{work} is dropped ({reason}): {error}")));
        if !planted!(DropUnrecorded) {
            self.record(vec![Fact::Dropped { group: work.group, reason, detail: error.to_owned() }], Then::Nothing, out);
        }
        let most = MAX_DROPS.max(MAX_DROPS_OF_A_STEP * self.plan.groups_per_step);
        if self.accounts.failed_in_a_row >= most {
            let why = format!("{most} groups in a row were dropped and no step was taken in between, the last: {work}: {error}");
            self.fail(format!("{why}; nothing is lost: mend the cause, then `cluster launch --resume`"), out);
        }
    }
}
