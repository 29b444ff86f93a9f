//! The intents of a synchronous run are those of the undisturbed run, to the digests; an asynchronous step takes as many
//! groups, each once.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::setting::Setting;
use crate::world::World;
use cohort_cluster::ledger::Entry;
use cohort_protocol::StepIntent;
use std::sync::OnceLock;

/// The undisturbed run's.
static CALM: OnceLock<Vec<StepIntent>> = OnceLock::new();

#[derive(Debug)]
pub(super) struct Intents {
    calm: Option<&'static Vec<StepIntent>>,
    count: usize,
}

impl Intents {
    pub(super) fn of(setting: &Setting) -> anyhow::Result<Self> {
        let undisturbed = setting.blows.is_empty() && setting.hosts == 0;
        let calm = match CALM.get() {
            _ if setting.plan.is_asynchronous() || undisturbed => None,
            Some(calm) => Some(calm),
            None => {
                // The reference has no bug in it.
                let bug = PLANTED.take();
                cohort_cluster::planted::plant(None);
                let ran = World::run(Setting::calm(0, 0))?;
                cohort_cluster::planted::plant(bug);
                PLANTED.set(bug);
                anyhow::ensure!(ran.broken.is_none(), "the undisturbed run: {:?}", ran.broken);
                Some(CALM.get_or_init(|| ran.intents))
            }
        };
        Ok(Self { calm, count: setting.plan.groups_per_step as usize })
    }
}

thread_local! {
    /// The bug of this thread's world.
    pub(crate) static PLANTED: std::cell::Cell<Option<cohort_cluster::planted::Planted>> = const { std::cell::Cell::new(None) };
}

impl Invariant for Intents {
    fn name(&self) -> &'static str {
        "intents"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        let Seen::Durable(entries) = seen else { return Ok(()) };
        for entry in entries {
            let Entry::Intent(intent) = entry else { continue };
            holds(intent.groups.len() == self.count, || format!("step {} takes {:?}", intent.step, intent.groups))?;
            if let Some(calm) = self.calm {
                let wanted = calm.iter().find(|c| c.step == intent.step);
                holds(wanted == Some(intent), || format!("{intent:?}, undisturbed {wanted:?}"))?;
            }
        }
        Ok(())
    }
}
