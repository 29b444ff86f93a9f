//! How hosts come to a version: its manifest is made once, then chunks move as [`Spread`] says.
use super::event::Command;
use super::placement::HEAD;
use super::state::HostsState;
use crate::agent::weights::spread::{FORGOTTEN, Host, Order, Source, Spread};
use cohort_protocol::messages::node::{ChunkName, FetchChunk, HeadToNode, Manifest, NoWeights, WantWeights};
use cohort_protocol::{PolicyVersion, Role, WorkerId};
use std::net::SocketAddr;

impl HostsState {
    pub(super) fn want(&mut self, host: Host, wish: WantWeights, out: &mut Vec<Command>) {
        let version = wish.version;
        if let Some(manifest) = self.manifests.get(&version).filter(|_| self.spread.knows(version)) {
            self.tell(host, HeadToNode::Manifest(manifest.clone()), out);
            return self.chunks(|spread, orders| spread.want(host, version, orders), out);
        }
        let begun = !self.waiting.contains_key(&version);
        self.waiting.entry(version).or_default().insert(host);
        if begun {
            out.push(Command::Hash { version, slot: wish.slot });
        }
    }

    pub(super) fn hashed(&mut self, version: PolicyVersion, result: Result<Manifest, String>, out: &mut Vec<Command>) {
        let waiting = self.waiting.remove(&version).unwrap_or_default();
        match result {
            Ok(manifest) => {
                let chunks = u32::try_from(manifest.hashes.len() / 32).unwrap_or(u32::MAX);
                self.chunks(|spread, orders| orders.extend(spread.publish(version, chunks)), out);
                self.manifests.insert(version, manifest.clone());
                self.manifests.retain(|version, _| self.spread.knows(*version));
                for host in waiting {
                    if !self.spread.knows(version) {
                        self.tell(host, HeadToNode::NoWeights(NoWeights { version, why: FORGOTTEN.to_owned() }), out);
                        continue;
                    }
                    self.tell(host, HeadToNode::Manifest(manifest.clone()), out);
                    self.chunks(|spread, orders| spread.want(host, version, orders), out);
                }
            }
            Err(why) => {
                for host in waiting {
                    self.tell(host, HeadToNode::NoWeights(NoWeights { version, why: why.clone() }), out);
                }
            }
        }
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
