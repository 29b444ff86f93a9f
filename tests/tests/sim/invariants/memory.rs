//! What the coordinator keeps is bounded by what is under way: payloads by groups in flight, deliveries by those not yet
//! acknowledged, and no worker runs more than it said it takes.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::setting::Setting;
use crate::workers::Brain;
use crate::world::World;

#[derive(Debug)]
pub(super) struct Memory {
    /// Groups that may be under way at once.
    groups: usize,
}

impl Memory {
    pub(super) fn new(setting: &Setting) -> Self {
        let plan = &setting.plan;
        let training = (plan.max_staleness as usize + 2) * plan.groups_per_step as usize;
        let prompts = plan.evaluation.map_or(0, |e| e.prompts * (1 + u64::from(e.greedy)));
        Self { groups: training + prompts as usize }
    }
}

impl Invariant for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn see(&mut self, _world: &World, _seen: &Seen) -> Result<(), String> {
        Ok(())
    }

    fn check(&mut self, world: &World) -> Result<(), String> {
        if let Some(core) = &world.desk.core {
            let (kept, deliveries, journal) = (core.kept.len(), core.deliveries.len(), core.journal.len());
            let most = self.groups;
            holds(kept <= most, || format!("{kept} groups are kept, {most} may be under way"))?;
            let begun = core.partials.groups();
            holds(begun <= most, || format!("words of {begun} groups are kept, {most} may be under way"))?;
            holds(deliveries <= 2 * most, || {
                format!("{deliveries} deliveries wait for an answer, {most} groups may be under way")
            })?;
            holds(journal <= 8 * most, || format!("{journal} records wait for the disk"))?;
        }
        for proc in world.procs.values() {
            if let Brain::Rollout(brain) = &proc.brain {
                let running = brain.running();
                holds(running <= crate::workers::CAPACITY.into(), || format!("{} runs {running} leases", proc.worker))?;
            }
        }
        Ok(())
    }
}
