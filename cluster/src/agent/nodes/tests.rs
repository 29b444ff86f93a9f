//! Hosts that come, go, are let go, and want weights.
use super::event::{Command, ConnId, Event};
use super::state::HostsState;
use crate::agent::weights::spread::Host;
use cohort_protocol::messages::node::{
    CertificateRequest, ChunkHashes, ChunkName, HeadToNode, Manifest, NodeReady, NodeToHead, RunFacts, WantWeights,
};
use cohort_protocol::version::{HASHES_IN_PARTS, PROTOCOL, REVOCATIONS};
use cohort_protocol::{PolicyVersion, Role, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

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
        out.retain(
            |c| !matches!(c, Command::Tell { conn: to, message: HeadToNode::Fetch(f) } if *to == conn && f.name.chunk == chunk),
        );
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
