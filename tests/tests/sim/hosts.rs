//! Other hosts and the head node's agent: the real `HostsState` (membership, placement, spreading of weights) decides; the
//! hosts here start and kill processes, take chunks from each other and check them with the real hash check.
use crate::agenda::Happening;
use crate::chance::hash;
use crate::net::{Message, Way, WireId};
use crate::seen::Seen;
use crate::workers::HEAD;
use crate::world::World;
use cohort_cluster::agent::nodes::event::{Command, ConnId, Event};
use cohort_cluster::agent::nodes::state::HostsState;
use cohort_cluster::agent::weights::{delta, manifest};
use cohort_protocol::messages::node::{
    CertificateRequest, ChunkFailed, ChunkHashes, ChunkName, FetchChunk, HeadToNode, Manifest, NodeReady, NodeToHead, RunFacts,
    WantWeights,
};
use cohort_protocol::messages::rollout::WeightsReady;
use cohort_protocol::version::{HASHES_IN_PARTS, PROTOCOL};
use cohort_protocol::{PolicyVersion, Role, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// For a chunk.
const PATIENCE: Duration = Duration::from_secs(3);
/// For a version to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
/// Bytes of a version's weights, and of a chunk.
const BYTES: u64 = 380;
const CHUNK: u32 = 64;
/// Chunks whose hashes are told together.
const PART: u32 = 2;
/// Copies that a host keeps.
const COPIES: usize = 2;

/// Something about other hosts.
#[derive(Debug, Clone)]
pub(crate) enum HostNote {
    /// A host is there, with nothing on it.
    Come(u16),
    /// An agent's try reaches the head node.
    Join(u16),
    /// A second has passed on the head node.
    Tick,
    /// What a slot of the head node's ring holds is to be hashed.
    Hash(PolicyVersion, u32),
    /// So many chunks of it have been hashed: version, slot, its digest.
    Hashed(PolicyVersion, u32, u64, u32),
    /// A certificate has been made.
    Certified(u16, WorkerId),
    /// A chunk's time is over: it is there, or it is not.
    Chunk(u16, u32, FetchChunk),
    /// A chunk could not be reached.
    Unreachable(u16, u32, FetchChunk),
    /// A worker has waited long enough for a version.
    Waited(u16, u32, WeightsReady),
}

/// The head node's view, and every host.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    pub(crate) state: HostsState,
    agents: BTreeMap<u16, Agent>,
    here: BTreeSet<WorkerId>,
}

/// A host's agent.
#[derive(Debug, Default)]
struct Agent {
    pid: u32,
    wire: Option<WireId>,
    assigned: BTreeSet<WorkerId>,
    copies: BTreeMap<PolicyVersion, Copy>,
    /// Who waits for a version, and where the head node has it.
    waiting: BTreeMap<PolicyVersion, (u32, Vec<(u32, WeightsReady)>)>,
}

#[derive(Debug)]
struct Copy {
    manifest: Manifest,
    chunks: BTreeMap<u32, Vec<u8>>,
}

impl Copy {
    fn is_whole(&self) -> bool {
        manifest::chunks(&self.manifest).is_ok_and(|n| self.chunks.len() == n as usize)
    }

    /// What a worker finds in it: the digest, where every byte is the learner's.
    fn digest(&self) -> u64 {
        let digest = self.manifest.digest;
        let wrong: Vec<&[u8]> = self
            .chunks
            .iter()
            .filter(|(chunk, bytes)| **bytes != bytes_of(digest, **chunk, bytes.len()))
            .map(|(_, bytes)| bytes.as_slice())
            .collect();
        if wrong.is_empty() { digest } else { hash(&wrong) }
    }
}

/// The learner's bytes: words that a version moves a little, so that what changed is shorter than the chunk.
fn bytes_of(digest: u64, chunk: u32, len: usize) -> Vec<u8> {
    let word = |word: u32| {
        let place = [chunk.to_le_bytes(), word.to_le_bytes()].concat();
        let moved = hash(&[&digest.to_le_bytes(), &place]) % 200;
        (hash(&[&place]) as u32).wrapping_add(moved as u32).to_le_bytes()
    };
    (0..).flat_map(word).take(len).collect()
}

fn manifest_of(version: PolicyVersion, digest: u64) -> Manifest {
    let mut made = Manifest { version, digest, directory_bytes: 0, value_bytes: BYTES, chunk_bytes: CHUNK, hashes: Vec::new() };
    for chunk in 0..manifest::chunks(&made).unwrap_or(0) {
        let bytes = bytes_of(digest, chunk, manifest::range(&made, chunk).1);
        made.hashes.extend_from_slice(blake3::hash(&bytes).as_bytes());
    }
    made
}

impl Hosts {
    /// Whether this agent is the one that runs.
    pub(crate) fn runs(&self, host: u16, pid: u32) -> bool {
        self.agents.get(&host).is_some_and(|agent| agent.pid == pid)
    }

    /// Whether a worker's process is wanted on a host.
    pub(crate) fn wants(&self, host: u16, worker: WorkerId) -> bool {
        match host {
            HEAD => worker.role == Role::Learner || self.here.contains(&worker),
            _ => self.agents.get(&host).is_some_and(|agent| agent.assigned.contains(&worker)),
        }
    }
}

impl World {
    /// The head node's own offer; the others are on their way.
    pub(crate) fn begin_hosts(&mut self) {
        let offers = [(Role::Rollout, self.setting.rollouts), (Role::Reward, self.setting.rewards)];
        let facts = RunFacts { config: String::new(), coordinator_port: 1, weights_port: 2, slots: self.setting.plan.slots };
        let mut out = Vec::new();
        self.hosts.state.begin(offers, 0, facts, &mut out);
        out.into_iter().for_each(|command| self.head_obeys(command));
        for host in 1..=self.setting.hosts {
            self.host_later(100, 3000, HostNote::Come(host));
        }
        self.agenda.put(Duration::from_secs(1), Happening::Host(HostNote::Tick));
    }

    pub(crate) fn host_note(&mut self, note: HostNote) {
        match note {
            HostNote::Come(host) => {
                self.next_pid += 1;
                self.hosts.agents.insert(host, Agent { pid: self.next_pid, ..Agent::default() });
                self.host_later(10, 300, HostNote::Join(host));
            }
            HostNote::Join(host) => self.join(host),
            HostNote::Tick => {
                self.head(Event::Tick);
                self.agenda.put(self.now + Duration::from_secs(1), Happening::Host(HostNote::Tick));
            }
            HostNote::Hash(version, slot) => match self.ring.holds(slot) {
                Some((held, digest)) if held == version => {
                    self.head(Event::Announced(Manifest { hashes: Vec::new(), ..manifest_of(version, digest) }));
                    self.host_later(5, 40, HostNote::Hashed(version, slot, digest, PART));
                }
                _ => self.head(Event::Hashed { version, result: Err(format!("slot {slot} holds another")) }),
            },
            HostNote::Hashed(version, slot, digest, hashed) => self.hashed(version, slot, digest, hashed),
            HostNote::Certified(host, worker) => self.head(Event::Certified { host, worker, der: Vec::new() }),
            HostNote::Chunk(host, agent, fetch) => self.chunk_comes(host, agent, fetch),
            HostNote::Unreachable(host, agent, fetch) => self.chunk_failed(host, agent, &fetch, "out of reach"),
            HostNote::Waited(host, pid, weights) => {
                let agent = self.hosts.agents.get_mut(&host);
                let waiting = agent.and_then(|a| a.waiting.get_mut(&weights.version));
                let before = waiting.as_ref().map_or(0, |(_, who)| who.len());
                let after = waiting.map_or(0, |(_, who)| {
                    who.retain(|(waits, _)| *waits != pid);
                    who.len()
                });
                if after < before {
                    self.brought(pid, weights, Err("it did not arrive in time".into()));
                }
            }
        }
    }

    /// The slot is looked at before a part is told, as the real code does before the last one.
    fn hashed(&mut self, version: PolicyVersion, slot: u32, digest: u64, hashed: u32) {
        if self.ring.holds(slot) != Some((version, digest)) {
            return self.head(Event::Hashed { version, result: Err(format!("slot {slot} was written anew")) });
        }
        let manifest = manifest_of(version, digest);
        let part = |chunk: u32| manifest.hashes.chunks(32).skip(chunk as usize);
        let hashes: Vec<u8> = part(hashed - PART).take(PART as usize).flatten().copied().collect();
        self.head(Event::HashedInPart(ChunkHashes { version, first: hashed - PART, hashes }));
        if part(hashed).next().is_some() {
            return self.host_later(5, 40, HostNote::Hashed(version, slot, digest, hashed + PART));
        }
        self.head(Event::Hashed { version, result: Ok(manifest) });
    }

    /// A host is gone with everything on it.
    pub(crate) fn lose_host(&mut self, host: u16, back_after: Duration) {
        if self.hosts.agents.remove(&host).is_none() {
            return;
        }
        let pids: Vec<u32> = self.procs.iter().filter(|(_, p)| p.host == host).map(|(pid, _)| *pid).collect();
        pids.into_iter().for_each(|pid| self.kill(pid, "its host is gone"));
        self.agenda.put(self.now + back_after, Happening::Host(HostNote::Come(host)));
    }

    fn join(&mut self, host: u16) {
        let Some(agent) = self.hosts.agents.get(&host).filter(|a| a.wire.is_none()) else { return };
        let pid = agent.pid;
        if self.net.cut_off(self.now, host) {
            return self.host_later(100, 1000, HostNote::Join(host));
        }
        let wire = self.net.open(self.now, WorkerId { role: Role::Node, index: host }, pid, host, 0);
        let Some(agent) = self.hosts.agents.get_mut(&host) else { return };
        agent.wire = Some(wire);
        let held = agent.copies.iter().rev().find(|(_, copy)| copy.is_whole()).map(|(version, _)| *version);
        let wishes: Vec<WantWeights> =
            agent.waiting.iter().map(|(&version, (slot, _))| WantWeights { version, slot: *slot }).collect();
        let mut offers = vec![(Role::Rollout, 1)];
        if host == self.setting.hosts {
            offers.push((Role::Reward, 1));
        }
        self.see(Seen::HostIsNew { host });
        // Every third host is of the build before.
        let protocol = if host % 3 == 2 { HASHES_IN_PARTS - 1 } else { PROTOCOL };
        let ip = Some(IpAddr::from([10, 0, 0, host as u8]));
        self.head(Event::Opened { conn: ConnId(wire), host, ip, protocol });
        self.host_says(host, NodeToHead::Ready(NodeReady { offers, weights_port: 9000 + host, held }));
        wishes.into_iter().for_each(|wish| self.host_says(host, NodeToHead::WantWeights(wish)));
    }

    pub(crate) fn host_lost_its_wire(&mut self, host: u16, wire: WireId) {
        if let Some(agent) = self.hosts.agents.get_mut(&host).filter(|a| a.wire == Some(wire)) {
            agent.wire = None;
            self.host_later(50, 500, HostNote::Join(host));
        }
    }

    pub(crate) fn head_lost_a_host(&mut self, wire: WireId) {
        self.head(Event::Closed { conn: ConnId(wire), why: "it fell silent".into() });
    }

    pub(crate) fn head_hears(&mut self, wire: WireId, message: Message) {
        if let Message::FromNode(message) = message {
            self.see(Seen::HeadHeard { wire, message: message.clone() });
            self.head(Event::Said { conn: ConnId(wire), message });
        }
    }

    fn host_says(&mut self, host: u16, message: NodeToHead) {
        if let Some(wire) = self.hosts.agents.get(&host).and_then(|a| a.wire) {
            self.send(wire, Way::Up, Message::FromNode(message));
        }
    }

    pub(crate) fn head(&mut self, event: Event) {
        let mut out = Vec::new();
        self.hosts.state.on_event(self.origin + self.now, event, &mut out);
        out.into_iter().for_each(|command| self.head_obeys(command));
    }

    fn head_obeys(&mut self, command: Command) {
        match command {
            Command::Tell { conn, message } => {
                self.see(Seen::HeadTold { wire: conn.0, message: message.clone() });
                self.send(conn.0, Way::Down, Message::ToNode(message));
            }
            Command::Close { conn, .. } => {
                if let Some(wire) = self.net.wires.get_mut(&conn.0) {
                    wire.head_open = false;
                }
            }
            Command::Here(workers) => {
                self.hosts.here = workers.iter().copied().collect();
                workers.into_iter().for_each(|worker| self.spawn(worker, HEAD));
            }
            Command::Hash { version, slot } => self.host_later(5, 40, HostNote::Hash(version, slot)),
            Command::Certify { host, worker, .. } => self.host_later(5, 30, HostNote::Certified(host, worker)),
            Command::Kill { worker, pid, why } => self.replace(HEAD, worker, pid, &why),
            Command::Notice(text) => {
                if let Some(host) =
                    text.strip_prefix("node-").and_then(|t| t.split_once(" has left")).and_then(|(n, _)| n.parse().ok())
                {
                    self.see(Seen::HostIsNew { host });
                }
            }
        }
    }

    /// A hung process is killed, if it is still the one that was meant.
    fn replace(&mut self, host: u16, worker: WorkerId, pid: u32, why: &str) {
        if self.procs.get(&pid).is_some_and(|p| p.worker == worker && p.host == host) {
            self.kill(pid, why);
        }
    }

    pub(crate) fn host_hears(&mut self, host: u16, pid: u32, wire: WireId, message: Message) {
        let Some(agent) = self.hosts.agents.get_mut(&host).filter(|a| a.pid == pid && a.wire == Some(wire)) else { return };
        let Message::ToNode(message) = message else { return };
        match message {
            HeadToNode::Assign(workers) => {
                let wanted: BTreeSet<WorkerId> = workers.into_iter().collect();
                let gone: Vec<WorkerId> = agent.assigned.difference(&wanted).copied().collect();
                agent.assigned.retain(|worker| wanted.contains(worker));
                let new: Vec<WorkerId> = wanted.difference(&agent.assigned).copied().collect();
                for worker in gone {
                    let pids: Vec<u32> =
                        self.procs.iter().filter(|(_, p)| p.host == host && p.worker == worker).map(|(pid, _)| *pid).collect();
                    pids.into_iter().for_each(|pid| self.kill(pid, "it is placed elsewhere"));
                }
                for worker in new {
                    self.host_says(host, NodeToHead::Certify(CertificateRequest { worker, public_key: Vec::new() }));
                }
            }
            HeadToNode::Certificate(certificate) => {
                agent.assigned.insert(certificate.worker);
                self.spawn(certificate.worker, host);
            }
            HeadToNode::Replace(replace) => self.replace(host, replace.worker, replace.pid, &replace.why),
            HeadToNode::Manifest(manifest) => agent.begin(manifest),
            HeadToNode::Hashes(part) => {
                let copy = agent.copies.get_mut(&part.version);
                // Those of a version that has made room are of no use.
                let _ = copy.map(|copy| manifest::learn(&mut copy.manifest, part.first, &part.hashes));
            }
            HeadToNode::Fetch(fetch) => self.host_later(10, 250, HostNote::Chunk(host, pid, fetch)),
            HeadToNode::NoWeights(no) => {
                let waiting = agent.waiting.remove(&no.version).map(|(_, who)| who).unwrap_or_default();
                waiting.into_iter().for_each(|(pid, weights)| self.brought(pid, weights, Err(no.why.clone())));
            }
            HeadToNode::Run(_) | HeadToNode::Leave(_) | HeadToNode::Revoked(_) => {}
        }
    }

    /// A worker of a host wants a version.
    pub(crate) fn ask_host(&mut self, host: u16, pid: u32, weights: WeightsReady) {
        let Some(agent) = self.hosts.agents.get_mut(&host) else { return };
        let version = weights.version;
        if let Some(copy) = agent.copies.get(&version).filter(|copy| copy.is_whole()) {
            let digest = copy.digest();
            return self.brought(pid, weights, Ok(digest));
        }
        let fresh = !agent.waiting.contains_key(&version);
        let (slot, who) = agent.waiting.entry(version).or_insert((weights.slot, Vec::new()));
        *slot = weights.slot;
        who.push((pid, weights.clone()));
        let wish = WantWeights { version, slot: weights.slot };
        if fresh {
            self.host_says(host, NodeToHead::WantWeights(wish));
        }
        self.agenda.put(self.now + ARRIVAL, Happening::Host(HostNote::Waited(host, pid, weights)));
    }

    fn chunk_comes(&mut self, host: u16, agent: u32, fetch: FetchChunk) {
        if !self.hosts.runs(host, agent) {
            return;
        }
        let ChunkName { version, chunk } = fetch.name;
        let from = fetch.from.index;
        let unreachable = self.net.cut_off(self.now, host) || from != HEAD && self.net.cut_off(self.now, from);
        if unreachable || from != HEAD && !self.hosts.agents.contains_key(&from) {
            return self.agenda.put(self.now + PATIENCE, Happening::Host(HostNote::Unreachable(host, agent, fetch)));
        }
        let manifest = self.hosts.agents.get(&host).and_then(|a| a.copies.get(&version)).map(|copy| copy.manifest.clone());
        let Some(manifest) = manifest else { return self.chunk_failed(host, agent, &fetch, "nobody waits for it") };
        let Some(mut whole) = self.given_by(from, &manifest, chunk) else {
            return self.chunk_failed(host, agent, &fetch, "it is not there");
        };
        let bytes = match self.as_delta(host, from, &manifest, chunk, &whole) {
            Some(bytes) => bytes,
            None => {
                if self.chance.permille(self.setting.rates.corrupt) {
                    whole[0] ^= 1;
                    self.count("corrupt chunks");
                }
                whole
            }
        };
        if !manifest::fits(&manifest, chunk, &bytes) {
            return self.chunk_failed(host, agent, &fetch, "its bytes do not have the manifest's hash");
        }
        let good = bytes == bytes_of(manifest.digest, chunk, bytes.len());
        self.see(Seen::ChunkKept { host, version, chunk, good });
        self.count("chunks");
        let Some(agent) = self.hosts.agents.get_mut(&host) else { return };
        let Some(copy) = agent.copies.get_mut(&version) else { return };
        copy.chunks.insert(chunk, bytes);
        let whole = copy.is_whole().then(|| copy.digest());
        let waiting = whole.and_then(|_| agent.waiting.remove(&version)).map(|(_, who)| who).unwrap_or_default();
        self.host_says(host, NodeToHead::Held(fetch.name));
        for (pid, weights) in waiting {
            self.brought(pid, weights, whole.ok_or_else(String::new));
        }
    }

    /// A chunk as the head node, or another host, has it.
    fn given_by(&self, from: u16, manifest: &Manifest, chunk: u32) -> Option<Vec<u8>> {
        let len = manifest::range(manifest, chunk).1;
        match from {
            HEAD => self.ring.digest_of(manifest.version).map(|digest| bytes_of(digest, chunk, len)),
            _ => self.hosts.agents.get(&from)?.copies.get(&manifest.version)?.chunks.get(&chunk).cloned(),
        }
    }

    /// What the taker makes of a delta, where giver and taker have the same older version; none where the chunk is to be taken
    /// whole, and where the delta came damaged.
    fn as_delta(&mut self, host: u16, from: u16, manifest: &Manifest, chunk: u32, whole: &[u8]) -> Option<Vec<u8>> {
        let copies = &self.hosts.agents.get(&host)?.copies;
        let older = copies.range(..manifest.version).rev().map(|(_, copy)| copy);
        let base = older.filter(|copy| copy.is_whole()).find(|copy| manifest::alike(&copy.manifest, manifest))?;
        let theirs = self.given_by(from, &base.manifest, chunk)?;
        let (hash, mut bytes) = (manifest::hash(&base.manifest, chunk)?, base.chunks.get(&chunk)?.clone());
        if *blake3::hash(&theirs).as_bytes() != hash {
            return None;
        }
        let mut delta = delta::between(&theirs, whole, manifest::phase(manifest, chunk))?;
        if self.chance.permille(self.setting.rates.corrupt) {
            let place = self.chance.below(delta.len() as u64) as usize;
            delta[place] ^= 1 << self.chance.below(8);
            self.count("corrupt deltas");
        }
        let applied = delta::apply(&mut bytes, manifest::phase(manifest, chunk), &delta);
        let sound = applied.is_ok() && manifest::fits(manifest, chunk, &bytes);
        self.count(if sound { "deltas" } else { "deltas refused" });
        sound.then_some(bytes)
    }

    fn chunk_failed(&mut self, host: u16, agent: u32, fetch: &FetchChunk, why: &str) {
        if self.hosts.runs(host, agent) {
            let failed = ChunkFailed { name: fetch.name, from: fetch.from, why: why.to_owned() };
            self.host_says(host, NodeToHead::ChunkFailed(failed));
        }
    }
}

impl Agent {
    /// What a version consists of; the oldest copies make room.
    fn begin(&mut self, manifest: Manifest) {
        let copy = self.copies.entry(manifest.version);
        let copy = copy.or_insert_with(|| Copy { manifest: manifest.clone(), chunks: BTreeMap::new() });
        if !manifest::agree(&copy.manifest, &manifest) {
            copy.chunks.clear();
            copy.manifest = manifest;
        } else if copy.manifest.hashes.len() < manifest.hashes.len() {
            copy.manifest = manifest;
        }
        while self.copies.len() > COPIES {
            self.copies.pop_first();
        }
    }
}
