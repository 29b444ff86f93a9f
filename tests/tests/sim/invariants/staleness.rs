//! A step consumes only groups whose every token is at most `max_staleness` versions older than its base, and none newer.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::setting::Setting;
use crate::world::World;
use cohort_cluster::ledger::Entry;
use cohort_protocol::{GroupId, PolicyVersion};
use std::collections::BTreeMap;

#[derive(Debug)]
pub(super) struct Staleness {
    most: u64,
    versions: BTreeMap<GroupId, (PolicyVersion, PolicyVersion)>,
}

impl Staleness {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { most: setting.plan.max_staleness, versions: BTreeMap::new() }
    }
}

impl Invariant for Staleness {
    fn name(&self) -> &'static str {
        "staleness"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Began { past, .. } => {
                let found = past.open_groups.iter().filter_map(|(id, group)| Some((*id, group.versions?)));
                self.versions.extend(found);
            }
            Seen::Durable(entries) => {
                for entry in entries {
                    match entry {
                        Entry::Trajectories(a) => drop(a.value.versions().and_then(|v| self.versions.insert(a.group, v))),
                        Entry::Intent(intent) => {
                            for group in &intent.groups {
                                let Some((oldest, newest)) = self.versions.get(group) else { continue };
                                let age = intent.base.0.saturating_sub(oldest.0);
                                holds(age <= self.most && *newest <= intent.base, || {
                                    let (step, base, most) = (intent.step, intent.base, self.most);
                                    format!(
                                        "step {step} from version {base} consumes group {group} of versions {oldest} to {newest}, at most {most} apart"
                                    )
                                })?;
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
