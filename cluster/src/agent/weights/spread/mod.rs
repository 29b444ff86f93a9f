//! Who takes which chunk of the weights from whom. Pure: the head node's agent decides, the hosts carry out.
//!
//! Invariants
//! - **S1** while some other host holds a chunk, or is taking it, it does not leave the head node again: what the head node
//!   sends of a version does not grow with the number of hosts.
//! - **S2** every host that wants a version gets all of its chunks, as long as the head node can be reached: a source that
//!   fails for a chunk is not asked for it again by that host, and the head node is the last source of all. Where the version
//!   is forgotten meanwhile, the host is told.
//! - **S3** at most `WINDOW` chunks are under way to a host, and at most `UPLOADS` from one.
//! - **S4** what one piece of news costs does not grow with the number of hosts: it looks at the host it is about, at as many of
//!   those that found no source as this one can give the chunk to, and at one of them for whatever else. Only where nothing at
//!   all is under way, and where further chunks can be taken, are all of them looked at.
//! - **S5** a chunk is on its way only when its hash is known: chunks are given while later ones are still being hashed.
//!
//! Files: `version` one version and the choice of the next chunk; `uploads` under way from each host; `wish` of each host.
#[cfg(test)]
mod tests;
mod uploads;
mod version;
mod wish;

use cohort_protocol::PolicyVersion;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use uploads::Uploads;
use version::Version;
use wish::Wish;

/// Chunks under way from one host.
const UPLOADS: usize = 16;
/// Versions that are remembered; workers take the newest, and may still be taking the one before.
const REMEMBERED: usize = 2;

/// Why a version cannot be had any more.
pub const FORGOTTEN: &str = "newer versions have taken its place";

/// A host by the index of its place; the head node is 0.
pub type Host = u16;

/// Who gives a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The head node.
    Head,
    /// Another host.
    Host(Host),
}

/// What is to be told to hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Take a chunk.
    Fetch {
        /// Who takes it.
        to: Host,
        /// Of which version.
        version: PolicyVersion,
        /// Which chunk.
        chunk: u32,
        /// Who gives it.
        from: Source,
    },
    /// The version cannot be had.
    GiveUp {
        /// Who wanted it.
        to: Host,
        /// Which version.
        version: PolicyVersion,
        /// Why not.
        why: String,
    },
}

/// All versions on their way.
#[derive(Debug, Default)]
pub struct Spread {
    versions: BTreeMap<PolicyVersion, Version>,
    uploads: Uploads,
}

impl Spread {
    /// Makes a version known all of whose chunks are hashed; the oldest is forgotten, and whoever lacks a chunk of it that is not on
    /// its way is to be told.
    pub fn publish(&mut self, version: PolicyVersion, chunks: u32) -> Vec<Order> {
        let mut told = self.announce(version, chunks);
        self.hashed(version, chunks, &mut told);
        told
    }

    /// The first so many chunks of a version have been hashed.
    pub fn hashed(&mut self, version: PolicyVersion, hashed: u32, out: &mut Vec<Order>) {
        let Some(v) = self.versions.get_mut(&version).filter(|v| v.hashed < hashed) else { return };
        v.hashed = hashed.min(v.chunks);
        self.serve_starved(version, usize::MAX, out);
    }

    /// A version cannot be had any more: whoever wants it is told.
    pub fn withdraw(&mut self, version: PolicyVersion, why: &str, out: &mut Vec<Order>) {
        let Some(old) = self.versions.remove(&version) else { return };
        for (to, wish) in old.wishes {
            wish.under_way.into_values().for_each(|source| self.uploads.ended(source));
            out.push(Order::GiveUp { to, version, why: why.to_owned() });
        }
    }

    /// As [`Self::publish`] of a version whose chunks are still to be hashed.
    pub fn announce(&mut self, version: PolicyVersion, chunks: u32) -> Vec<Order> {
        let holders = vec![BTreeSet::new(); chunks as usize];
        let (wishes, starved, leaving) = (BTreeMap::new(), VecDeque::new(), BTreeSet::new());
        let fresh = Version { chunks, hashed: 0, holders, wishes, starved, leaving };
        self.versions.entry(version).or_insert(fresh);
        let mut told = Vec::new();
        while self.versions.len() > REMEMBERED {
            let Some((version, old)) = self.versions.pop_first() else { break };
            for (to, wish) in old.wishes {
                if wish.missing.iter().any(|chunk| !wish.under_way.contains_key(chunk)) {
                    told.push(Order::GiveUp { to, version, why: FORGOTTEN.to_owned() });
                }
                for source in wish.under_way.into_values() {
                    self.uploads.ended(source);
                }
            }
        }
        told
    }

    /// Whether the version's chunks are known.
    pub fn knows(&self, version: PolicyVersion) -> bool {
        self.versions.contains_key(&version)
    }

    /// A host wants a version that was published.
    pub fn want(&mut self, host: Host, version: PolicyVersion, out: &mut Vec<Order>) {
        let Some(v) = self.versions.get_mut(&version) else { return };
        let missing = (0..v.chunks).filter(|&c| !v.holders[c as usize].contains(&host)).collect();
        v.wishes.entry(host).or_insert_with(|| Wish { missing, ..Wish::default() });
        self.plan(host, out);
    }

    /// A host says that it has all of a version.
    pub fn holds_all(&mut self, host: Host, version: PolicyVersion) {
        if let Some(v) = self.versions.get_mut(&version) {
            v.holders.iter_mut().for_each(|holders| {
                holders.insert(host);
            });
        }
    }

    /// A host has a chunk.
    pub fn held(&mut self, host: Host, version: PolicyVersion, chunk: u32, out: &mut Vec<Order>) {
        self.landed(host, version, chunk);
        if let Some(v) = self.versions.get_mut(&version) {
            if let Some(holders) = v.holders.get_mut(chunk as usize) {
                holders.insert(host);
            }
            if let Some(wish) = v.wishes.get_mut(&host) {
                wish.missing.remove(&chunk);
                if wish.missing.is_empty() {
                    v.wishes.remove(&host);
                }
            }
        }
        self.pass_on(host, version, chunk, out);
        self.plan(host, out);
    }

    /// A chunk did not come from where it was to come from.
    pub fn failed(&mut self, host: Host, version: PolicyVersion, chunk: u32, why: &str, out: &mut Vec<Order>) {
        if !self.knows(version) {
            out.push(Order::GiveUp { to: host, version, why: format!("chunk {chunk}: {why}; {FORGOTTEN}") });
        }
        let source = self.landed(host, version, chunk);
        if let Some((v, source)) = self.versions.get_mut(&version).zip(source) {
            if let Source::Host(from) = source
                && let Some(holders) = v.holders.get_mut(chunk as usize)
            {
                holders.remove(&from);
            }
            let given_up = v.wishes.get_mut(&host).is_some_and(|wish| wish.refused(chunk, source));
            if given_up && let Some(wish) = v.forget(host) {
                for (chunk, source) in wish.under_way {
                    if source == Source::Head {
                        v.leaving.remove(&chunk);
                    }
                    self.uploads.ended(source);
                }
                out.push(Order::GiveUp { to: host, version, why: format!("chunk {chunk}: {why}") });
            }
        }
        self.plan(host, out);
    }

    /// A host is gone: what it had and what it was taking.
    pub fn gone(&mut self, host: Host, out: &mut Vec<Order>) {
        for v in self.versions.values_mut() {
            v.holders.iter_mut().for_each(|holders| {
                holders.remove(&host);
            });
            for (chunk, source) in v.forget(host).map(|wish| wish.under_way).unwrap_or_default() {
                if source == Source::Head {
                    v.leaving.remove(&chunk);
                }
                self.uploads.ended(source);
            }
        }
        // Those that take from it say so themselves.
        self.plan(host, out);
    }

    /// A chunk is no longer under way.
    fn landed(&mut self, host: Host, version: PolicyVersion, chunk: u32) -> Option<Source> {
        let v = self.versions.get_mut(&version)?;
        let source = v.wishes.get_mut(&host)?.under_way.remove(&chunk)?;
        if source == Source::Head {
            v.leaving.remove(&chunk);
        }
        self.uploads.ended(source);
        Some(source)
    }

    /// Gives the next chunks to the host that the news is about, then to one that found no source before: the news may have
    /// freed an upload.
    fn plan(&mut self, host: Host, out: &mut Vec<Order>) {
        let versions: Vec<PolicyVersion> = self.versions.keys().copied().collect();
        for version in versions {
            self.serve(version, host, out);
            self.serve_starved(version, 1, out);
            if self.uploads.none() {
                self.serve_starved(version, usize::MAX, out);
            }
        }
    }

    /// A chunk goes on from a host that has got it to as many of the starved as it has uploads.
    fn pass_on(&mut self, from: Host, version: PolicyVersion, chunk: u32, out: &mut Vec<Order>) {
        let Some(v) = self.versions.get_mut(&version) else { return };
        let source = Source::Host(from);
        for _ in 0..v.starved.len().min(UPLOADS) {
            if self.uploads.of(source) >= UPLOADS {
                return;
            }
            let Some(to) = v.starved.pop_front() else { return };
            // A wish that is gone has left its name here.
            let Some(wish) = v.wishes.get_mut(&to) else { continue };
            if to != from && wish.lacks(chunk) && !wish.avoid.contains(&(chunk, from)) && wish.has_room() {
                wish.under_way.insert(chunk, source);
                self.uploads.begun(source);
                out.push(Order::Fetch { to, version, chunk, from: source });
            }
            wish.starved = wish.has_room();
            if wish.starved {
                v.starved.push_back(to);
            }
        }
    }

    /// Looks at up to `most` of the starved, each once.
    fn serve_starved(&mut self, version: PolicyVersion, most: usize, out: &mut Vec<Order>) {
        let waiting = self.versions.get(&version).map_or(0, |v| v.starved.len());
        for _ in 0..waiting.min(most) {
            let Some(v) = self.versions.get_mut(&version) else { return };
            let Some(host) = v.starved.pop_front() else { return };
            // A wish that is gone has left its name here.
            let Some(wish) = v.wishes.get_mut(&host) else { continue };
            wish.starved = false;
            self.serve(version, host, out);
        }
    }

    /// Fills a host's window as far as there are sources.
    fn serve(&mut self, version: PolicyVersion, host: Host, out: &mut Vec<Order>) {
        let Some(v) = self.versions.get_mut(&version) else { return };
        while let Some((chunk, from)) = v.next_for(host, &self.uploads) {
            let Some(wish) = v.wishes.get_mut(&host) else { return };
            wish.under_way.insert(chunk, from);
            self.uploads.begun(from);
            if from == Source::Head {
                v.leaving.insert(chunk);
            }
            out.push(Order::Fetch { to: host, version, chunk, from });
        }
        let starves = |wish: &&mut Wish| !wish.starved && wish.has_room();
        if let Some(wish) = v.wishes.get_mut(&host).filter(starves) {
            wish.starved = true;
            v.starved.push_back(host);
        }
    }
}
