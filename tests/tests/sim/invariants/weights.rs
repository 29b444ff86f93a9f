//! A version's weights are a function of the base and of what the steps consumed: every commit, every replay, every learner
//! and every rollout worker that holds the version has that digest.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::workers::{base_digest, stepped};
use crate::world::World;
use cohort_cluster::ledger::Entry;
use cohort_protocol::{PolicyVersion, StepId, StepIntent};
use std::collections::BTreeMap;

/// The digest of every version, from what its steps consumed.
#[derive(Debug, Default)]
pub(super) struct Digests(BTreeMap<StepId, StepIntent>);

impl Digests {
    pub(super) fn note(&mut self, entry: &Entry) {
        if let Entry::Intent(intent) = entry {
            self.0.insert(intent.step, intent.clone());
        }
    }

    pub(super) fn of(&self, version: PolicyVersion) -> u64 {
        let steps = self.0.range(..=StepId(version.0));
        steps.fold(base_digest(), |base, (_, intent)| stepped(base, &intent.digests))
    }
}

#[derive(Debug, Default)]
pub(super) struct Weights(Digests);

impl Invariant for Weights {
    fn name(&self) -> &'static str {
        "weights"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Durable(entries) => {
                for entry in entries {
                    self.0.note(entry);
                    let Entry::Commit(commit) = entry else { continue };
                    let (digest, wanted) = (commit.weights_digest, self.0.of(commit.version));
                    holds(digest == wanted, || {
                        format!("version {} is committed with {digest:016x}, its groups make {wanted:016x}", commit.version)
                    })?;
                }
                Ok(())
            }
            Seen::Took { pid, version, digest } => {
                let wanted = self.0.of(*version);
                holds(*digest == wanted, || {
                    let who = world.procs.get(pid).map(|p| p.worker);
                    format!("{who:?} holds version {version} with {digest:016x}, its groups make {wanted:016x}")
                })
            }
            _ => Ok(()),
        }
    }
}
