//! How hosts come to a version: it is hashed once, and as its chunks are hashed they move as [`Spread`] says.
use super::event::Command;
use super::placement::HEAD;
use super::state::HostsState;
use crate::agent::weights::manifest;
use crate::agent::weights::spread::{FORGOTTEN, Host, Order, Source, Spread};
use cohort_protocol::messages::node::{ChunkHashes, ChunkName, FetchChunk, HeadToNode, Manifest, NoWeights, WantWeights};
use cohort_protocol::version::HASHES_IN_PARTS;
use cohort_protocol::{PolicyVersion, Role, WorkerId};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// A version that was announced.
#[derive(Debug)]
pub(super) struct Known {
    manifest: Manifest,
    /// Who has the manifest and is told further hashes.
    told: BTreeSet<Host>,
}

impl Known {
    fn is_complete(&self) -> bool {
        manifest::chunks(&self.manifest) == Ok(manifest::hashed(&self.manifest))
    }
}

impl HostsState {
    pub(super) fn want(&mut self, host: Host, wish: WantWeights, out: &mut Vec<Command>) {
        let version = wish.version;
        let announced = self.spread.knows(version) && self.manifests.contains_key(&version);
        if announced && self.give_manifest(host, version, out) {
            return;
        }
        let begun = !announced && !self.waiting.contains_key(&version);
        self.waiting.entry(version).or_default().insert(host);
        if begun {
            out.push(Command::Hash { version, slot: wish.slot });
        }
    }

    /// Tells a host what a version consists of and lets its chunks move; not one that must have all hashes at once and cannot yet.
    fn give_manifest(&mut self, host: Host, version: PolicyVersion, out: &mut Vec<Command>) -> bool {
        let in_parts = self.members.get(&host).is_some_and(|member| member.protocol >= HASHES_IN_PARTS);
        let Some(known) = self.manifests.get_mut(&version).filter(|known| in_parts || known.is_complete()) else { return false };
        known.told.insert(host);
        let manifest = known.manifest.clone();
        self.tell(host, HeadToNode::Manifest(manifest), out);
        self.chunks(|spread, orders| spread.want(host, version, orders), out);
        true
    }

    pub(super) fn announced(&mut self, manifest: Manifest, out: &mut Vec<Command>) {
        let version = manifest.version;
        let chunks = manifest::chunks(&manifest).unwrap_or_default();
        self.chunks(|spread, orders| orders.extend(spread.announce(version, chunks)), out);
        self.manifests.entry(version).or_insert(Known { manifest, told: BTreeSet::new() });
        self.manifests.retain(|version, _| self.spread.knows(*version));
        self.serve_waiting(version, out);
    }

    pub(super) fn hashed_in_part(&mut self, part: ChunkHashes, out: &mut Vec<Command>) {
        let version = part.version;
        // A version that has been forgotten meanwhile needs no hashes.
        let Some(known) = self.manifests.get_mut(&version) else { return };
        if manifest::learn(&mut known.manifest, part.first, &part.hashes).is_err() {
            return;
        }
        let (hashed, told) = (manifest::hashed(&known.manifest), known.told.clone());
        for host in told {
            self.tell(host, HeadToNode::Hashes(part.clone()), out);
        }
        self.chunks(|spread, orders| spread.hashed(version, hashed, orders), out);
    }

    pub(super) fn hashed(&mut self, version: PolicyVersion, result: Result<Manifest, String>, out: &mut Vec<Command>) {
        match result {
            Ok(manifest) => {
                if !self.manifests.contains_key(&version) {
                    self.announced(Manifest { hashes: Vec::new(), ..manifest.clone() }, out);
                }
                let first = self.manifests.get(&version).map_or(0, |known| manifest::hashed(&known.manifest));
                let rest = manifest.hashes.get(first as usize * 32..).unwrap_or_default().to_vec();
                if !rest.is_empty() {
                    self.hashed_in_part(ChunkHashes { version, first, hashes: rest }, out);
                }
                self.serve_waiting(version, out);
            }
            Err(why) => {
                self.manifests.remove(&version);
                self.chunks(|spread, orders| spread.withdraw(version, &why, orders), out);
                for host in self.waiting.remove(&version).unwrap_or_default() {
                    self.tell(host, HeadToNode::NoWeights(NoWeights { version, why: why.clone() }), out);
                }
            }
        }
    }

    /// Those who have waited for a version get its manifest, or hear that it is too late.
    fn serve_waiting(&mut self, version: PolicyVersion, out: &mut Vec<Command>) {
        for host in self.waiting.remove(&version).unwrap_or_default() {
            if !self.spread.knows(version) {
                self.tell(host, HeadToNode::NoWeights(NoWeights { version, why: FORGOTTEN.to_owned() }), out);
            } else if !self.give_manifest(host, version, out) {
                self.waiting.entry(version).or_default().insert(host);
            }
        }
    }

    /// A host whose connection is a new one asks again for what it wants.
    pub(super) fn forget_told(&mut self, host: Host) {
        self.manifests.values_mut().for_each(|known| {
            known.told.remove(&host);
        });
    }

    /// Lets chunks move and tells the hosts.
    pub(super) fn chunks(&mut self, change: impl FnOnce(&mut Spread, &mut Vec<Order>), out: &mut Vec<Command>) {
        let mut orders = Vec::new();
        change(&mut self.spread, &mut orders);
        for order in orders {
            match order {
                Order::Fetch { to, version, chunk, from } => {
                    let (from, address) = self.address(from);
                    let name = ChunkName { version, chunk };
                    self.tell(to, HeadToNode::Fetch(FetchChunk { name, from, address }), out);
                }
                Order::GiveUp { to, version, why } => self.tell(to, HeadToNode::NoWeights(NoWeights { version, why }), out),
            }
        }
    }

    fn address(&self, source: Source) -> (WorkerId, String) {
        let node = |index| WorkerId { role: Role::Node, index };
        match source {
            Source::Head => (node(HEAD), String::new()),
            Source::Host(host) => {
                let member = self.members.get(&host);
                let at = member.and_then(|m| Some(SocketAddr::new(m.ip?, m.weights_port)));
                // Without an address the host says that it failed, and another source is found.
                (node(host), at.map_or_else(|| "unknown".to_owned(), |at| at.to_string()))
            }
        }
    }
}
