//! Every evaluation round is recorded once, with all its prompts, and no step is decided upon from a version whose rounds are
//! due: a round is of one version.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::setting::Setting;
use crate::world::World;
use cohort_cluster::controller::{Outcome, Plan};
use cohort_cluster::ledger::Entry;
use std::collections::BTreeSet;

#[derive(Debug)]
pub(super) struct Rounds {
    plan: Plan,
    done: BTreeSet<(u64, bool)>,
}

impl Rounds {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { plan: setting.plan.clone(), done: BTreeSet::new() }
    }

    fn all_of(&self, version: u64) -> Result<(), String> {
        let missing = self.plan.rounds_at(version).into_iter().find(|round| !self.done.contains(&(round.step, round.greedy)));
        holds(missing.is_none(), || format!("the run goes on from version {version} and {missing:?} is not done"))
    }
}

impl Invariant for Rounds {
    fn name(&self) -> &'static str {
        "rounds"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        let Seen::Durable(entries) = seen else { return Ok(()) };
        for entry in entries {
            match entry {
                Entry::Evaluation(report) => {
                    let (step, greedy) = (report.step, report.greedy);
                    holds(self.done.insert((step, greedy)), || {
                        format!("the round at {step}, greedy {greedy}, is recorded twice")
                    })?;
                    let due = self.plan.rounds_at(step).into_iter().find(|round| round.greedy == greedy);
                    let prompts = due.map_or(0, |round| round.prompts);
                    holds(report.per_prompt.len() as u64 == prompts, || format!("a round of {prompts} prompts: {report:?}"))?;
                }
                Entry::Intent(intent) => self.all_of(intent.base.0)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        if world.outcome == Some(Outcome::Finished) { self.all_of(self.plan.steps) } else { Ok(()) }
    }
}
