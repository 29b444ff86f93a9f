//! What the head node's agent decides about other hosts: who is there, which workers each runs, who gets weights from whom.
//! Pure; `actor.rs` carries out.
//!
//! Invariants
//! - **H1** one connection a host; a newer one ends the older, whose messages are then ignored.
//! - **H2** a host whose connection is lost keeps its workers for [`GRACE`]; then they are placed elsewhere, or not at all. One
//!   that says that it leaves, leaves at once.
//! - **H3** a host is told its workers whenever they change, all of them; a certificate is given for those and its own place only.
//! - **H4** a host that was let go is given nothing any more, and every other one is told that its certificates are worth nothing.
use super::event::{Command, ConnId, Event};
use super::placement::{HEAD, Placement};
use super::weights::Known;
use crate::agent::weights::spread::{Host, Spread};
use cohort_protocol::messages::node::{Certificate, ChildState, ChunkName, HeadToNode, NodeReady, NodeToHead, Replace, RunFacts};
use cohort_protocol::version::REVOCATIONS;
use cohort_protocol::{PolicyVersion, Role, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a host may be out of reach before its workers are given up.
pub const GRACE: Duration = Duration::from_secs(10);

/// A host that is there, or was a moment ago.
#[derive(Debug)]
pub(super) struct Member {
    conn: Option<ConnId>,
    pub(super) ip: Option<IpAddr>,
    pub(super) protocol: u16,
    pub(super) weights_port: u16,
    lost: Option<Instant>,
    told: Option<Vec<WorkerId>>,
    children: Vec<ChildState>,
}

/// Everything about other hosts.
#[derive(Debug, Default)]
pub struct HostsState {
    placement: Placement,
    facts: Option<RunFacts>,
    pub(super) members: BTreeMap<Host, Member>,
    here: Vec<WorkerId>,
    /// Hosts that were let go.
    revoked: BTreeSet<Host>,
    pub(super) spread: Spread,
    pub(super) manifests: BTreeMap<PolicyVersion, Known>,
    /// Who waits for a version to be announced, or hashed to its end.
    pub(super) waiting: BTreeMap<PolicyVersion, BTreeSet<Host>>,
}

impl HostsState {
    /// The head node's own offer, the number of learner ranks besides the lead, and what hosts are told of the run.
    pub fn begin(
        &mut self,
        offers: impl IntoIterator<Item = (Role, u16)>,
        followers: u16,
        facts: RunFacts,
        out: &mut Vec<Command>,
    ) {
        self.facts = Some(facts);
        self.placement.follow(followers);
        self.placement.join(HEAD, offers);
        self.assign(out);
    }

    /// So many workers of a role from now on.
    ///
    /// # Errors
    /// For a role whose workers cannot be placed, and a count out of range: with the value and what it may be.
    pub fn scale(&mut self, role: Role, count: u16, out: &mut Vec<Command>) -> Result<(), String> {
        self.placement.scale(role, count)?;
        self.assign(out);
        Ok(())
    }

    /// Lets a host go: its workers are placed elsewhere, and it is asked to leave.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn dismiss(&mut self, host: Host, out: &mut Vec<Command>) -> Result<(), String> {
        let Some(member) = self.members.get(&host) else {
            let there: Vec<String> = self.members.keys().map(|host| format!("node-{host}")).collect();
            return Err(format!("there is no node-{host}; there are: {}", there.join(", ")));
        };
        if let Some(conn) = member.conn {
            out.push(Command::Tell { conn, message: HeadToNode::Leave("it was drained".into()) });
        }
        self.placement.leave(host);
        self.assign(out);
        Ok(())
    }

    /// Tells every host in reach to take new certificates, for itself and its workers; how many hosts those are. One that is out
    /// of reach is told at the next renewal.
    pub fn renew(&self, out: &mut Vec<Command>) -> usize {
        let mut hosts = 0;
        for (&host, member) in &self.members {
            let Some(conn) = member.conn else { continue };
            let own = WorkerId { role: Role::Node, index: host };
            for worker in self.placement.on(host).into_iter().chain([own]) {
                // Empty: ask for one.
                out.push(Command::Tell { conn, message: HeadToNode::Certificate(Certificate { worker, der: Vec::new() }) });
            }
            hosts += 1;
        }
        hosts
    }

    /// Workers of a role, all hosts together.
    pub fn count(&self, role: Role) -> u16 {
        self.placement.count(role)
    }

    /// Roles without which the run stands still, and for whose workers there is no place.
    pub fn lacking(&self) -> Vec<Role> {
        self.placement.lacking()
    }

    /// Processes of other hosts, by host.
    pub fn children(&self) -> impl Iterator<Item = (WorkerId, bool, &[ChildState])> {
        let name = |host: &Host| WorkerId { role: Role::Node, index: *host };
        self.members.iter().map(move |(host, m)| (name(host), m.conn.is_some(), m.children.as_slice()))
    }

    /// Every connection, for the farewell.
    pub fn connections(&self) -> Vec<ConnId> {
        self.members.values().filter_map(|m| m.conn).collect()
    }

    /// Takes note of an event.
    pub fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Opened { conn, host, ip, protocol } => self.opened(conn, host, (ip, protocol), out),
            Event::Said { conn, message } => {
                if let Some(host) = self.host_of(conn) {
                    self.said(host, message, out);
                }
            }
            Event::Closed { conn, why } => {
                let Some(host) = self.host_of(conn) else { return };
                if let Some(member) = self.members.get_mut(&host) {
                    (member.conn, member.lost) = (None, Some(now));
                }
                out.push(Command::Notice(format!("node-{host} is out of reach: {why}")));
            }
            Event::Announced(manifest) => self.announced(manifest, out),
            Event::HashedInPart(part) => self.hashed_in_part(part, out),
            Event::Hashed { version, result } => self.hashed(version, result, out),
            Event::Certified { host, worker, der } => {
                self.tell(host, HeadToNode::Certificate(Certificate { worker, der }), out);
            }
            Event::Hangs { worker, pid, why } => match self.placement.of(worker) {
                Some(host) if host != HEAD => self.tell(host, HeadToNode::Replace(Replace { worker, pid, why }), out),
                // The lead and the coordinator are placed by nobody: they are here.
                _ => out.push(Command::Kill { worker, pid, why }),
            },
            Event::Revoked(hosts) => self.revoked(hosts, out),
            Event::Tick => {
                let late = |m: &Member| m.lost.is_some_and(|at| now.saturating_duration_since(at) > GRACE);
                let gone: Vec<Host> = self.members.iter().filter(|(_, m)| late(m)).map(|(&host, _)| host).collect();
                for host in gone {
                    self.leave(host, "it did not come back", out);
                }
            }
        }
    }

    fn host_of(&self, conn: ConnId) -> Option<Host> {
        self.members.iter().find(|(_, m)| m.conn == Some(conn)).map(|(&host, _)| host)
    }

    pub(super) fn tell(&self, host: Host, message: HeadToNode, out: &mut Vec<Command>) {
        // A host that is out of reach hears everything that still matters when it is back.
        if let Some(conn) = self.members.get(&host).and_then(|m| m.conn) {
            out.push(Command::Tell { conn, message });
        }
    }

    /// H1.
    fn opened(&mut self, conn: ConnId, host: Host, (ip, protocol): (Option<IpAddr>, u16), out: &mut Vec<Command>) {
        let children = self.members.get_mut(&host).map(|m| std::mem::take(&mut m.children)).unwrap_or_default();
        let member = Member { conn: Some(conn), ip, weights_port: 0, lost: None, told: None, protocol, children };
        if let Some(older) = self.members.insert(host, member).and_then(|m| m.conn) {
            out.push(Command::Close { conn: older, why: "a newer connection of this host".into() });
        }
        // What it was taking over the old connection it asks for again.
        self.forget_told(host);
        self.chunks(|spread, orders| spread.gone(host, orders), out);
    }

    fn said(&mut self, host: Host, message: NodeToHead, out: &mut Vec<Command>) {
        // H4.
        if self.revoked.contains(&host) && !matches!(message, NodeToHead::Children(_) | NodeToHead::Leaving(_)) {
            return;
        }
        match message {
            NodeToHead::Ready(ready) => self.ready(host, ready, out),
            NodeToHead::Certify(request) => {
                let own = WorkerId { role: Role::Node, index: host };
                if request.worker == own || self.placement.of(request.worker) == Some(host) {
                    out.push(Command::Certify { host, worker: request.worker, public_key: request.public_key });
                }
            }
            NodeToHead::Children(children) => {
                if let Some(member) = self.members.get_mut(&host) {
                    member.children = children;
                }
            }
            NodeToHead::Beat(_) => {}
            NodeToHead::WantWeights(wish) => self.want(host, wish, out),
            NodeToHead::Held(ChunkName { version, chunk }) => {
                self.chunks(|spread, orders| spread.held(host, version, chunk, orders), out);
            }
            NodeToHead::ChunkFailed(failed) => {
                let ChunkName { version, chunk } = failed.name;
                let why = format!("from {}: {}", failed.from, failed.why);
                self.chunks(|spread, orders| spread.failed(host, version, chunk, &why, orders), out);
            }
            NodeToHead::Leaving(reason) => self.leave(host, &reason, out),
        }
    }

    fn ready(&mut self, host: Host, ready: NodeReady, out: &mut Vec<Command>) {
        let known = self.placement.on(host).len();
        if let Some(member) = self.members.get_mut(&host) {
            member.weights_port = ready.weights_port;
        }
        if let Some(facts) = self.facts.clone() {
            self.tell(host, HeadToNode::Run(facts), out);
        }
        self.tell_revoked(host, out);
        if let Some(version) = ready.held {
            self.spread.holds_all(host, version);
        }
        let offers: Vec<String> = ready.offers.iter().map(|(role, n)| format!("{role}={n}")).collect();
        self.placement.join(host, ready.offers);
        if known == 0 {
            let ip =
                self.members.get(&host).and_then(|m| m.ip).map_or_else(|| "an unknown address".to_owned(), |ip| ip.to_string());
            out.push(Command::Notice(format!("node-{host} has joined from {ip} and offers {}", offers.join(","))));
        }
        self.assign(out);
    }

    /// H4.
    fn revoked(&mut self, hosts: BTreeSet<Host>, out: &mut Vec<Command>) {
        if self.revoked == hosts {
            return;
        }
        self.revoked = hosts;
        let others: Vec<Host> = self.members.keys().copied().collect();
        others.into_iter().for_each(|host| self.tell_revoked(host, out));
    }

    fn tell_revoked(&self, host: Host, out: &mut Vec<Command>) {
        let knows = self.members.get(&host).is_some_and(|member| member.protocol >= REVOCATIONS);
        if knows && !self.revoked.is_empty() && !self.revoked.contains(&host) {
            self.tell(host, HeadToNode::Revoked(self.revoked.iter().copied().collect()), out);
        }
    }

    /// H2.
    fn leave(&mut self, host: Host, why: &str, out: &mut Vec<Command>) {
        if let Some(conn) = self.members.remove(&host).and_then(|m| m.conn) {
            out.push(Command::Close { conn, why: "it leaves".into() });
        }
        self.placement.leave(host);
        self.forget_told(host);
        out.push(Command::Notice(format!("node-{host} has left: {why}")));
        self.chunks(|spread, orders| spread.gone(host, orders), out);
        self.assign(out);
    }

    /// H3.
    fn assign(&mut self, out: &mut Vec<Command>) {
        let here = self.placement.on(HEAD);
        if here != self.here {
            self.here.clone_from(&here);
            out.push(Command::Here(here));
        }
        for (&host, member) in &mut self.members {
            let workers = self.placement.on(host);
            // Before it says what it offers there is nothing to tell.
            let Some(conn) = member.conn.filter(|_| member.weights_port != 0) else { continue };
            if member.told.as_ref() != Some(&workers) {
                member.told = Some(workers.clone());
                out.push(Command::Tell { conn, message: HeadToNode::Assign(workers) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::messages::node::{CertificateRequest, ChunkHashes, Manifest, WantWeights};
    use cohort_protocol::version::{HASHES_IN_PARTS, PROTOCOL};

    fn rollout(index: u16) -> WorkerId {
        WorkerId { role: Role::Rollout, index }
    }

    struct World {
        state: HostsState,
        begun: Instant,
        next: u64,
    }

    impl World {
        fn new() -> (Self, Vec<Command>) {
            let (mut state, mut out) = (HostsState::default(), Vec::new());
            let facts = RunFacts { config: String::new(), coordinator_port: 1, weights_port: 2, slots: 3 };
            state.begin([(Role::Rollout, 1), (Role::Reward, 1)], 0, facts, &mut out);
            (Self { state, begun: Instant::now(), next: 0 }, out)
        }

        fn at(&mut self, seconds: u64, event: Event) -> Vec<Command> {
            let mut out = Vec::new();
            self.state.on_event(self.begun + Duration::from_secs(seconds), event, &mut out);
            out
        }

        fn say(&mut self, conn: ConnId, message: NodeToHead) -> Vec<Command> {
            self.at(0, Event::Said { conn, message })
        }

        fn join(&mut self, host: Host, rollouts: u16) -> (ConnId, Vec<Command>) {
            self.join_speaking(host, rollouts, PROTOCOL)
        }

        fn join_speaking(&mut self, host: Host, rollouts: u16, protocol: u16) -> (ConnId, Vec<Command>) {
            self.next += 1;
            let conn = ConnId(self.next);
            let ip = Some(IpAddr::from([10, 0, 0, host as u8]));
            let mut out = self.at(0, Event::Opened { conn, host, ip, protocol });
            let offers = vec![(Role::Rollout, rollouts)];
            out.extend(self.say(conn, NodeToHead::Ready(NodeReady { offers, weights_port: 9000, held: None })));
            (conn, out)
        }
    }

    fn assigned(out: &[Command], to: ConnId) -> Option<Vec<WorkerId>> {
        out.iter().rev().find_map(|command| match command {
            Command::Tell { conn, message: HeadToNode::Assign(workers) } if *conn == to => Some(workers.clone()),
            _ => None,
        })
    }

    fn fetches(out: &[Command]) -> Vec<(ConnId, u32, String)> {
        let fetch = |command: &Command| match command {
            Command::Tell { conn, message: HeadToNode::Fetch(f) } => Some((*conn, f.name.chunk, f.address.clone())),
            _ => None,
        };
        out.iter().filter_map(fetch).collect()
    }

    #[test]
    fn a_host_gets_its_workers_and_certificates_for_those_only() {
        let (mut world, out) = World::new();
        assert_eq!(out, [Command::Here(vec![rollout(0), WorkerId { role: Role::Reward, index: 0 }])]);
        let (conn, out) = world.join(1, 2);
        assert_eq!(assigned(&out, conn), Some(vec![rollout(1), rollout(2)]));
        let ask = |worker| NodeToHead::Certify(CertificateRequest { worker, public_key: vec![4] });
        assert!(matches!(world.say(conn, ask(rollout(2)))[..], [Command::Certify { host: 1, .. }]));
        let node = |index| WorkerId { role: Role::Node, index };
        assert!(matches!(world.say(conn, ask(node(1)))[..], [Command::Certify { host: 1, .. }]), "its own place");
        for foreign in [rollout(0), rollout(7), WorkerId { role: Role::Learner, index: 0 }, node(0), node(2)] {
            assert!(world.say(conn, ask(foreign)).is_empty(), "{foreign} is not its to run");
        }
        // A renewal asks it for all it has, and no host that is out of reach.
        let mut out = Vec::new();
        assert_eq!(world.state.renew(&mut out), 1);
        let asked = out.iter().filter_map(|command| match command {
            Command::Tell { message: HeadToNode::Certificate(c), .. } if c.der.is_empty() => Some(c.worker),
            _ => None,
        });
        assert_eq!(asked.collect::<Vec<_>>(), [rollout(1), rollout(2), node(1)]);
        world.at(1, Event::Closed { conn, why: "idle".into() });
        assert_eq!(world.state.renew(&mut out), 0);
    }

    #[test]
    fn a_lost_host_keeps_its_workers_for_a_while_and_a_newer_connection_counts() {
        let (mut world, _) = World::new();
        let (first, _) = world.join(1, 2);
        world.at(1, Event::Closed { conn: first, why: "idle".into() });
        assert!(world.at(5, Event::Tick).is_empty());
        let (second, out) = world.join(1, 2);
        assert_eq!(assigned(&out, second), Some(vec![rollout(1), rollout(2)]), "the same ones");
        assert!(world.at(60, Event::Tick).is_empty());
        let (third, out) = world.join(1, 2);
        assert!(out.iter().any(|c| matches!(c, Command::Close { conn, .. } if *conn == second)));
        assert!(world.say(second, NodeToHead::Leaving("late".into())).is_empty(), "H1");
        world.at(61, Event::Closed { conn: third, why: "idle".into() });
        let out = world.at(72, Event::Tick);
        assert!(matches!(&out[..], [Command::Notice(text)] if text.contains("node-1 has left")), "{out:?}");
        assert_eq!(world.state.count(Role::Rollout), 1);
    }

    #[test]
    fn a_host_that_was_let_go_gets_nothing_and_the_others_hear_of_it() {
        let (mut world, _) = World::new();
        let ((a, _), (b, _)) = (world.join(1, 1), world.join(2, 1));
        let (old, _) = world.join_speaking(3, 1, REVOCATIONS - 1);
        let mut out = Vec::new();
        world.state.dismiss(1, &mut out).unwrap();
        assert!(out.iter().any(|c| matches!(c, Command::Tell { conn, message: HeadToNode::Leave(_) } if *conn == a)), "{out:?}");
        let told = |out: &[Command]| -> Vec<(ConnId, Vec<u16>)> {
            let revoked = |c: &Command| match c {
                Command::Tell { conn, message: HeadToNode::Revoked(hosts) } => Some((*conn, hosts.clone())),
                _ => None,
            };
            out.iter().filter_map(revoked).collect()
        };
        let gone = || Event::Revoked(BTreeSet::from([1]));
        assert_eq!(told(&world.at(0, gone())), [(b, vec![1])], "an older build would not know the message");
        assert_eq!(world.at(1, gone()), [], "once");
        // It does not leave, and asks for more.
        let offers = vec![(Role::Rollout, 4)];
        assert_eq!(world.say(a, NodeToHead::Ready(NodeReady { offers, weights_port: 9000, held: None })), []);
        let wish = NodeToHead::WantWeights(WantWeights { version: PolicyVersion(4), slot: 1 });
        assert_eq!(world.say(a, wish), []);
        assert_eq!(world.state.count(Role::Rollout), 3, "the head node, the second and the third host");
        let (late, out) = world.join(4, 1);
        assert_eq!(told(&out), [(late, vec![1])], "who comes later hears of it first of all");
        assert!(out.iter().all(|c| !matches!(c, Command::Tell { conn, .. } if *conn == old)));
    }

    #[test]
    fn workers_are_wished_for_on_hosts_that_are_there() {
        let (mut world, _) = World::new();
        let (conn, _) = world.join(1, 1);
        let mut out = Vec::new();
        world.state.scale(Role::Rollout, 4, &mut out).unwrap();
        assert_eq!(assigned(&out, conn).map(|w| w.len()), Some(2));
        let out = world.say(conn, NodeToHead::Leaving("SIGTERM".into()));
        let here = out.iter().find_map(|c| if let Command::Here(workers) = c { Some(workers.len()) } else { None });
        assert_eq!(here, Some(5), "four rollout workers and the reward worker: {out:?}");
        assert_eq!(world.state.count(Role::Rollout), 4);
    }

    #[test]
    fn weights_are_hashed_once_and_come_from_hosts_that_have_them() {
        let (mut world, _) = World::new();
        let (a, _) = world.join(1, 1);
        let (b, _) = world.join(2, 1);
        let want = NodeToHead::WantWeights(WantWeights { version: PolicyVersion(4), slot: 1 });
        assert_eq!(world.say(a, want.clone()), [Command::Hash { version: PolicyVersion(4), slot: 1 }]);
        assert!(world.say(b, want).is_empty(), "one hash is enough");
        let manifest = of_two_chunks(4);
        let mut out = world.at(0, Event::Hashed { version: PolicyVersion(4), result: Ok(manifest) });
        let mut from_head = 0;
        let mut held: BTreeMap<ConnId, BTreeSet<u32>> = BTreeMap::new();
        while let Some((conn, chunk, address)) = fetches(&out).first().cloned() {
            out.retain(|c| !matches!(c, Command::Tell { conn: to, message: HeadToNode::Fetch(f) } if *to == conn && f.name.chunk == chunk));
            from_head += u32::from(address.is_empty());
            assert!(address.is_empty() || address == if conn == a { "10.0.0.2:9000" } else { "10.0.0.1:9000" });
            held.entry(conn).or_default().insert(chunk);
            out.extend(world.say(conn, NodeToHead::Held(ChunkName { version: PolicyVersion(4), chunk })));
        }
        assert!(held.len() == 2 && held.values().all(|chunks| chunks.len() == 2), "{held:?}");
        assert_eq!(from_head, 2);
    }

    fn of_two_chunks(version: u64) -> Manifest {
        let hashes = [[1; 32], [2; 32]].concat();
        Manifest { version: PolicyVersion(version), digest: 1, directory_bytes: 1, value_bytes: 1, chunk_bytes: 1, hashes }
    }

    /// What a connection is told of a version: manifests and hashes by how many hashes they bring, and chunks.
    fn weights_told(out: &[Command], to: ConnId) -> Vec<String> {
        let told = out.iter().filter_map(|command| match command {
            Command::Tell { conn, message } if *conn == to => match message {
                HeadToNode::Manifest(m) => Some(format!("manifest {}", m.hashes.len() / 32)),
                HeadToNode::Hashes(h) => Some(format!("hashes {}+{}", h.first, h.hashes.len() / 32)),
                HeadToNode::Fetch(f) => Some(format!("fetch {}", f.name.chunk)),
                HeadToNode::NoWeights(no) => Some(no.why.clone()),
                _ => None,
            },
            _ => None,
        });
        told.collect()
    }

    #[test]
    fn chunks_are_given_as_they_are_hashed_and_older_builds_wait_for_all() {
        let (mut world, _) = World::new();
        let (new, _) = world.join(1, 1);
        let (old, _) = world.join_speaking(2, 1, HASHES_IN_PARTS - 1);
        let want = || NodeToHead::WantWeights(WantWeights { version: PolicyVersion(4), slot: 1 });
        world.say(new, want());
        world.say(old, want());
        let whole = of_two_chunks(4);
        let out = world.at(0, Event::Announced(Manifest { hashes: Vec::new(), ..whole.clone() }));
        assert_eq!((weights_told(&out, new), weights_told(&out, old)), (vec!["manifest 0".to_owned()], vec![]));
        let part = |first: u32| {
            let hashes = whole.hashes[first as usize * 32..][..32].to_vec();
            Event::HashedInPart(ChunkHashes { version: PolicyVersion(4), first, hashes })
        };
        let out = world.at(0, part(0));
        assert_eq!(weights_told(&out, new), ["hashes 0+1", "fetch 0"]);
        // One that comes in between, and one whose connection is a new one, have what is known and are told the rest.
        let (late, _) = world.join(3, 1);
        assert_eq!(weights_told(&world.say(late, want()), late), ["manifest 1"]);
        let (again, _) = world.join(1, 1);
        let out = world.say(again, want());
        assert_eq!(weights_told(&out, again)[..1], ["manifest 1"]);
        let out = world.at(0, part(1));
        assert_eq!((weights_told(&out, old), weights_told(&out, new)), (vec![], vec![]));
        let told = [weights_told(&out, again), weights_told(&out, late)];
        assert!(told.iter().all(|told| told[0] == "hashes 1+1"), "{told:?}");
        let out = world.at(0, Event::Hashed { version: PolicyVersion(4), result: Ok(whole) });
        assert_eq!(weights_told(&out, old)[..1], ["manifest 2"]);
        assert!(weights_told(&out, again).iter().chain(&weights_told(&out, late)).all(|told| !told.contains("hashes")));
    }

    #[test]
    fn weights_that_change_while_they_are_hashed_are_said_to_be_gone_to_all() {
        let (mut world, _) = World::new();
        let (new, _) = world.join(1, 1);
        let (old, _) = world.join_speaking(2, 1, HASHES_IN_PARTS - 1);
        for conn in [new, old] {
            world.say(conn, NodeToHead::WantWeights(WantWeights { version: PolicyVersion(4), slot: 1 }));
        }
        world.at(0, Event::Announced(Manifest { hashes: Vec::new(), ..of_two_chunks(4) }));
        let out = world.at(0, Event::Hashed { version: PolicyVersion(4), result: Err("slot 1 was written anew".into()) });
        for conn in [new, old] {
            assert_eq!(weights_told(&out, conn), ["slot 1 was written anew"]);
        }
        let want = NodeToHead::WantWeights(WantWeights { version: PolicyVersion(4), slot: 2 });
        assert_eq!(world.say(new, want), [Command::Hash { version: PolicyVersion(4), slot: 2 }]);
    }

    #[test]
    fn weights_that_are_gone_are_said_to_be() {
        let (mut world, _) = World::new();
        let (conn, _) = world.join(1, 1);
        world.say(conn, NodeToHead::WantWeights(WantWeights { version: PolicyVersion(4), slot: 1 }));
        let out = world.at(0, Event::Hashed { version: PolicyVersion(4), result: Err("slot 1 holds version 6".into()) });
        assert!(matches!(&out[..], [Command::Tell { message: HeadToNode::NoWeights(no), .. }] if no.why.contains("version 6")));
        // Hashed when two newer ones are known already.
        for version in [7, 8] {
            world.at(0, Event::Hashed { version: PolicyVersion(version), result: Ok(of_two_chunks(version)) });
        }
        world.say(conn, NodeToHead::WantWeights(WantWeights { version: PolicyVersion(5), slot: 1 }));
        let out = world.at(0, Event::Hashed { version: PolicyVersion(5), result: Ok(of_two_chunks(5)) });
        assert!(
            matches!(&out[..], [Command::Tell { message: HeadToNode::NoWeights(no), .. }] if no.version == PolicyVersion(5)),
            "{out:?}"
        );
    }

    #[test]
    fn whoever_hangs_is_killed_where_it_runs() {
        let (mut world, _) = World::new();
        let (conn, _) = world.join(1, 1);
        let hangs = |worker| Event::Hangs { worker, pid: 7, why: "it stands still".into() };
        assert!(matches!(world.at(0, hangs(rollout(1)))[..], [Command::Tell { conn: to, .. }] if to == conn));
        for here in [rollout(0), WorkerId { role: Role::Learner, index: 0 }] {
            assert!(matches!(world.at(0, hangs(here))[..], [Command::Kill { .. }]));
        }
    }
}
