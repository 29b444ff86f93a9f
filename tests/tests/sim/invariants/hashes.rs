//! A host is told to take a chunk of weights only when it has been told the chunk's hash.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::node::HeadToNode;
use std::collections::BTreeMap;

/// How many hashes of a version were told over a connection, from the first chunk on.
#[derive(Debug, Default)]
pub(super) struct Hashes(BTreeMap<(u64, PolicyVersion), u32>);

impl Invariant for Hashes {
    fn name(&self) -> &'static str {
        "hashes"
    }

    fn see(&mut self, _world: &World, seen: &Seen) -> Result<(), String> {
        let Seen::HeadTold { wire, message } = seen else { return Ok(()) };
        let count = |bytes: &[u8]| (bytes.len() / 32) as u32;
        match message {
            HeadToNode::Manifest(manifest) => {
                self.0.insert((*wire, manifest.version), count(&manifest.hashes));
            }
            HeadToNode::Hashes(part) => {
                let told = self.0.entry((*wire, part.version)).or_default();
                holds(*told == part.first, || {
                    format!("hashes of version {} from chunk {} on, over {wire} {told} were told", part.version, part.first)
                })?;
                *told += count(&part.hashes);
            }
            HeadToNode::Fetch(fetch) => {
                let told = self.0.get(&(*wire, fetch.name.version)).copied().unwrap_or_default();
                holds(fetch.name.chunk < told, || {
                    let (version, chunk) = (fetch.name.version, fetch.name.chunk);
                    format!("chunk {chunk} of version {version} is to be taken, over {wire} {told} hashes were told")
                })?;
            }
            _ => {}
        }
        Ok(())
    }
}
