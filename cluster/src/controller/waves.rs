//! A synchronous run: one wave after the other, of a step's groups or of evaluation rounds, each closed when all its groups
//! are complete. `stream` is its counterpart with `max_staleness` above 0.
use super::command::{Command, Fact};
use super::event::{ScoresSummary, TrajectoriesSummary, Work};
use super::state::{ControllerState, Then};
use super::wave::{Generation, Group, Scoring, Wave, WaveKind};
use crate::ledger::PastGroup;
use cohort_protocol::{GroupId, PolicyVersion, StepId, StepIntent};

impl ControllerState {
    pub(super) fn advance_wave(&mut self, out: &mut Vec<Command>) {
        if self.draining || self.committing.is_some() {
            return;
        }
        if self.plan.is_asynchronous() {
            return self.advance_stream(out);
        }
        if self.wave.is_none() {
            let rounds = self.rounds_due();
            let next = StepId(self.version().0 + 1);
            if !rounds.is_empty() {
                self.wave = Some(Self::evaluation_wave(rounds));
            } else if self.version().0 < self.plan.steps && !self.intents.contains_key(&next) {
                self.wave = Some(Wave::new(WaveKind::Training(next)));
            }
        }
        let kind = match &self.wave {
            Some(wave) if !wave.closing => wave.kind.clone(),
            _ => return,
        };
        match kind {
            WaveKind::Evaluation(rounds) => {
                if self.wave.as_ref().is_some_and(|w| w.is_complete() || w.is_empty()) {
                    self.close_evaluation(&rounds, out);
                }
            }
            WaveKind::Stream(_) => {}
            WaveKind::Training(step) => {
                self.fill_training_wave();
                if self.wave.as_ref().is_some_and(Wave::is_complete) {
                    self.close_training_wave(step, out);
                }
            }
        }
    }

    /// Tops the wave up: first groups left in flight by an earlier incarnation, then new ones.
    fn fill_training_wave(&mut self) {
        while self.wave.as_ref().is_some_and(|wave| wave.len() < self.plan.groups_per_step as usize) {
            let (id, group) = self.next_training_group();
            if let Some(wave) = &mut self.wave {
                wave.insert(Work::train(id), group);
            }
        }
    }

    /// One left in flight by an earlier incarnation, or a new one.
    pub(super) fn next_training_group(&mut self) -> (GroupId, Group) {
        if let Some((id, past)) = self.open.pop_first() {
            return (id, resumed(past, self.plan.group_size));
        }
        let new = (GroupId(self.take_group_number()), Group::new(self.next_cursor, self.plan.group_size));
        self.next_cursor += 1;
        new
    }

    /// Whether groups of an earlier incarnation wait to be taken up.
    pub(super) fn has_open_groups(&self) -> bool {
        !self.open.is_empty()
    }

    /// A number that no group has had.
    pub(super) fn take_group_number(&mut self) -> u64 {
        self.next_group += 1;
        self.next_group - 1
    }

    fn close_training_wave(&mut self, step: StepId, out: &mut Vec<Command>) {
        let Some(wave) = &mut self.wave else { return };
        wave.closing = true;
        let mut intent = StepIntent { step, base: PolicyVersion(step.0 - 1), groups: Vec::new(), digests: Vec::new() };
        for (work, group) in wave.iter() {
            if let Scoring::Done(scores) = &group.scoring {
                intent.groups.push(work.group);
                intent.digests.push(scores.digest.clone());
            }
        }
        if planted!(IntentUnordered) {
            intent.groups.reverse();
            intent.digests.reverse();
        }
        self.record(vec![Fact::Intent(intent.clone())], Then::Intent(intent), out);
    }
}

/// A group as an earlier incarnation left it.
fn resumed(past: PastGroup, samples: u16) -> Group {
    let lease_attempt = if planted!(AttemptForgotten) { cohort_protocol::AttemptId(0) } else { past.attempt };
    let mut group = Group { opened: true, lease_attempt, ..Group::new(past.cursor, samples) };
    if let Some((digest, _)) = past.trajectories {
        group.generation = Generation::Done(TrajectoriesSummary { digest, samples, versions: past.versions });
        if let Some((digest, _)) = past.scores {
            group.scoring = Scoring::Done(ScoresSummary { digest, scores: Vec::new(), parts: Vec::new(), failure: None });
        }
    }
    group
}
