//! No more groups are in flight and in no step than the steps up to version + `max_staleness` + 1 consume.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::setting::Setting;
use crate::world::World;
use cohort_cluster::ledger::Entry;
use cohort_protocol::GroupId;
use std::collections::BTreeSet;

#[derive(Debug)]
pub(super) struct Ahead {
    most: usize,
    undecided: BTreeSet<GroupId>,
}

impl Ahead {
    pub(super) fn new(setting: &Setting) -> Self {
        let most = (setting.plan.max_staleness as usize + 1) * setting.plan.groups_per_step as usize;
        Self { most, undecided: BTreeSet::new() }
    }
}

impl Invariant for Ahead {
    fn name(&self) -> &'static str {
        "ahead"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        let Seen::Durable(entries) = seen else { return Ok(()) };
        for entry in entries {
            match entry {
                Entry::Opened { group, .. } => drop(self.undecided.insert(*group)),
                Entry::Intent(intent) => self.undecided.retain(|group| !intent.groups.contains(group)),
                Entry::Dropped { group, .. } => drop(self.undecided.remove(group)),
                _ => {}
            }
        }
        let (open, most) = (self.undecided.len(), self.most);
        holds(open <= most, || format!("{open} groups are under way, at most {most} may be"))
    }
}
