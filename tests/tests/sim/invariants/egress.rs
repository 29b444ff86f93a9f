//! While another host holds a chunk, or is taking it from the head node, it does not leave the head node again; and no host
//! is told to take more than 8 chunks at once, from one source no more than 16 at once are taken.
use super::{Invariant, holds};
use crate::seen::Seen;
use crate::world::World;
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::node::{ChunkName, HeadToNode, NodeToHead};
use std::collections::{BTreeMap, BTreeSet};

const WINDOW: usize = 8;
const UPLOADS: usize = 16;
/// Versions that the head node remembers.
const REMEMBERED: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Egress {
    versions: BTreeSet<PolicyVersion>,
    holders: BTreeMap<ChunkName, BTreeSet<u16>>,
    /// Who takes a chunk from whom.
    taking: BTreeMap<(u16, PolicyVersion, u32), u16>,
    /// Sources that failed a host.
    failed: BTreeSet<(u16, PolicyVersion, u32, u16)>,
}

impl Invariant for Egress {
    fn name(&self) -> &'static str {
        "egress"
    }

    fn see(&mut self, world: &World, seen: &Seen) -> Result<(), String> {
        let host_of = |wire: &u64| world.net.wires.get(wire).map(|w| w.peer.index);
        match seen {
            Seen::HostIsNew { host } => self.forget(*host),
            Seen::HeadTold { wire, message } => {
                let Some(host) = host_of(wire) else { return Ok(()) };
                match message {
                    HeadToNode::Fetch(fetch) => return self.fetch(host, fetch.name, fetch.from.index),
                    HeadToNode::Manifest(manifest) => {
                        if manifest.hashes.is_empty() {
                            // Announced, perhaps anew: what was known of it before went with the slot that was written.
                            self.holders.retain(|name, _| name.version != manifest.version);
                        }
                        self.publish(manifest.version);
                    }
                    HeadToNode::NoWeights(no) => self.taking.retain(|(to, version, _), _| *to != host || *version != no.version),
                    _ => {}
                }
            }
            Seen::HeadHeard { wire, message } => {
                let Some(host) = host_of(wire) else { return Ok(()) };
                match message {
                    NodeToHead::Held(name) => {
                        self.taking.remove(&(host, name.version, name.chunk));
                        self.holders.entry(*name).or_default().insert(host);
                    }
                    NodeToHead::ChunkFailed(failed) => {
                        let ChunkName { version, chunk } = failed.name;
                        if let Some(from) = self.taking.remove(&(host, version, chunk)) {
                            self.holders.entry(failed.name).or_default().remove(&from);
                            self.failed.insert((host, version, chunk, from));
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Egress {
    fn fetch(&mut self, to: u16, name: ChunkName, from: u16) -> Result<(), String> {
        let ChunkName { version, chunk } = name;
        if from == 0 {
            let taking =
                self.taking.iter().find(|((host, v, c), source)| **source == 0 && (*v, *c) == (version, chunk) && *host != to);
            holds(taking.is_none(), || {
                format!("chunk {chunk} of version {version} leaves the head node for {to} and for {taking:?}")
            })?;
            let holder = self.holders.get(&name).into_iter().flatten();
            let holder = holder.copied().find(|h| *h != to && !self.failed.contains(&(to, version, chunk, *h)));
            holds(holder.is_none(), || {
                format!("chunk {chunk} of version {version} leaves the head node for {to}, {holder:?} has it")
            })?;
        }
        self.taking.insert((to, version, chunk), from);
        let window = self.taking.keys().filter(|(host, v, _)| *host == to && *v == version).count();
        let uploads = self.taking.values().filter(|source| **source == from).count();
        holds(window <= WINDOW && uploads <= UPLOADS, || format!("{window} chunks under way to {to}, {uploads} from {from}"))
    }

    fn publish(&mut self, version: PolicyVersion) {
        self.versions.insert(version);
        while self.versions.len() > REMEMBERED {
            let Some(old) = self.versions.pop_first() else { return };
            self.taking.retain(|(_, v, _), _| *v != old);
            self.holders.retain(|name, _| name.version != old);
        }
    }

    fn forget(&mut self, host: u16) {
        self.taking.retain(|(to, ..), _| *to != host);
        self.failed.retain(|(to, ..)| *to != host);
        for holders in self.holders.values_mut() {
            holders.remove(&host);
        }
    }
}
