//! A version's weights are a function of the base and of what the steps consumed: every commit, every replay, every learner
//! and every rollout worker that holds the version has that digest.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::workers::{base_digest, stepped};
use crate::world::World;
use cohort_cluster::ledger::Entry;
use cohort_protocol::{PolicyVersion, StepId, StepIntent};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Weights {
    intents: BTreeMap<StepId, StepIntent>,
}

impl Weights {
    fn of(&self, version: PolicyVersion) -> u64 {
        let steps = self.intents.range(..=StepId(version.0));
        steps.fold(base_digest(), |base, (_, intent)| stepped(base, &intent.digests))
    }
}

impl Invariant for Weights {
    fn name(&self) -> &'static str {
        "weights"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Durable(entries) => {
                for entry in entries {
                    match entry {
                        Entry::Intent(intent) => drop(self.intents.insert(intent.step, intent.clone())),
                        Entry::Commit(commit) => {
                            let (digest, wanted) = (commit.weights_digest, self.of(commit.version));
                            holds(digest == wanted, || {
                                format!(
                                    "version {} is committed with {digest:016x}, its groups make {wanted:016x}",
                                    commit.version
                                )
                            })?;
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            Seen::Took { pid, version, digest } => {
                let wanted = self.of(*version);
                holds(*digest == wanted, || {
                    let who = world.procs.get(pid).map(|p| p.worker);
                    format!("{who:?} holds version {version} with {digest:016x}, its groups make {wanted:016x}")
                })
            }
            _ => Ok(()),
        }
    }
}
