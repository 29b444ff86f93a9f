//! Rounds on held-out prompts. Their groups live apart from training: they are leased only between steps, are scored and
//! averaged, and never consumed. A round that a crash cut short is done again from its start; a complete one is recorded.
use super::command::{Command, Fact};
use super::event::Work;
use super::plan::EvaluationRound;
use super::state::{ControllerState, Then};
use super::wave::{Group, Scoring, Wave, WaveKind};
use crate::progress::EvaluationReport;
use cohort_protocol::{GroupId, LeasePurpose};

impl ControllerState {
    /// Rounds that are due at the current version and not recorded.
    #[must_use]
    pub fn rounds_due(&self) -> Vec<EvaluationRound> {
        let done = |r: &EvaluationRound| self.evaluations.contains(&(r.step, r.greedy));
        self.plan.rounds_at(self.version().0).into_iter().filter(|r| !done(r)).collect()
    }

    /// A wave of all their prompts.
    pub(super) fn evaluation_wave(rounds: Vec<EvaluationRound>) -> Wave {
        let mut wave = Wave::new(WaveKind::Evaluation(Vec::new()));
        Self::add_prompts(&rounds, &mut wave);
        wave.kind = WaveKind::Evaluation(rounds);
        wave
    }

    /// All their prompts into a wave.
    pub(super) fn add_prompts(rounds: &[EvaluationRound], wave: &mut Wave) {
        for round in rounds {
            for prompt in 0..round.prompts {
                wave.insert(work(round, prompt), Group::new(prompt, round.samples));
            }
        }
    }

    /// All prompts are scored: record what came out.
    pub(super) fn close_evaluation(&mut self, rounds: &[EvaluationRound], out: &mut Vec<Command>) {
        let Some(wave) = &mut self.wave else { return };
        wave.closing = true;
        let reports: Vec<EvaluationReport> = rounds.iter().map(|round| report(wave, round)).collect();
        let facts = reports.iter().cloned().map(Fact::Evaluation).collect();
        self.record(facts, Then::Evaluations(reports), out);
    }

    /// The rounds are on the disk.
    pub(super) fn evaluations_recorded(&mut self, reports: Vec<EvaluationReport>, out: &mut Vec<Command>) {
        match &mut self.wave {
            Some(Wave { kind: WaveKind::Stream(rounds), .. }) => {
                rounds.clear();
                out.extend(self.wave.as_mut().map(|wave| {
                    wave.closing = false;
                    Command::Forget(wave.remove_prompts())
                }));
            }
            wave => out.extend(wave.take().map(|wave| Command::Forget(wave.iter().map(|(work, _)| *work).collect()))),
        }
        for report in reports {
            self.evaluations.insert((report.step, report.greedy));
            out.push(Command::Evaluated(report));
        }
    }
}

fn work(round: &EvaluationRound, prompt: u64) -> Work {
    Work { purpose: LeasePurpose::Eval { step: round.step, greedy: round.greedy }, group: GroupId(prompt) }
}

fn report(wave: &Wave, round: &EvaluationRound) -> EvaluationReport {
    let (mut per_prompt, mut parts, mut scores) = (Vec::new(), Vec::<(String, f64)>::new(), Vec::new());
    for prompt in 0..round.prompts {
        let Some(Group { scoring: Scoring::Done(summary), .. }) = wave.get(&work(round, prompt)) else { continue };
        per_prompt.push(mean(&summary.scores));
        scores.extend_from_slice(&summary.scores);
        for (name, value) in &summary.parts {
            match parts.iter_mut().find(|(n, _)| n == name) {
                Some((_, sum)) => *sum += value,
                None => parts.push((name.clone(), *value)),
            }
        }
    }
    for (_, sum) in &mut parts {
        *sum /= per_prompt.len().max(1) as f64;
    }
    EvaluationReport {
        step: round.step,
        greedy: round.greedy,
        reward: mean(&scores),
        parts,
        per_prompt,
        samples: round.samples,
        example: None,
    }
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}
