//! Leases name a version that their worker has: in a synchronous run the committed one, else none that is too stale; only
//! the committed version is published and told of, with its digest.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::{Command, Event};
use cohort_cluster::ledger::Entry;
use cohort_protocol::PolicyVersion;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Versions {
    committed: PolicyVersion,
    digests: BTreeMap<PolicyVersion, u64>,
    /// What workers said that they hold, by connection.
    held: BTreeMap<u64, Option<PolicyVersion>>,
}

impl Invariant for Versions {
    fn name(&self) -> &'static str {
        "versions"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Began { past, .. } => {
                self.committed = PolicyVersion(past.committed());
                self.held.clear();
            }
            // Durable a moment before the controller hears of it: leases of the same write may come in between.
            Seen::Ordered(Command::Committed(step)) => self.committed = PolicyVersion(step.0),
            Seen::Durable(entries) => {
                for entry in entries {
                    if let Entry::Commit(commit) = entry {
                        self.digests.insert(commit.version, commit.weights_digest);
                    }
                }
            }
            Seen::Heard(Event::RolloutReady { conn, version, .. }) => drop(self.held.insert(conn.0, *version)),
            Seen::Ordered(Command::Lease { conn, work, version, .. }) => {
                let most = if work.is_training() { world.setting.plan.max_staleness } else { 0 };
                let age = self.committed.0.checked_sub(version.0);
                holds(age.is_some_and(|age| age <= most), || {
                    format!("{work} is leased for version {version} while {} is committed", self.committed)
                })?;
                let held = self.held.get(&conn.0).copied().flatten();
                holds(held == Some(*version), || format!("{work} is leased for version {version} to a worker with {held:?}"))?;
            }
            Seen::Ordered(Command::Publish { version, .. }) => {
                holds(*version == self.committed, || format!("version {version} is published, {} is committed", self.committed))?;
            }
            Seen::Ordered(Command::Weights { version, digest, .. }) => {
                let known = self.digests.get(version).copied();
                holds(*version == self.committed && known.is_none_or(|known| known == *digest), || {
                    format!(
                        "workers are told of version {version} with {digest:016x}; {} is committed, {known:x?}",
                        self.committed
                    )
                })?;
            }
            _ => {}
        }
        Ok(())
    }
}
