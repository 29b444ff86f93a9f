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
    pub(super) revoked: BTreeSet<Host>,
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
