//! Versions on their way through real holders and takers over loopback, whole and as what changed.
use super::holder;
use super::manifest;
use super::place::{Arrived, Place};
use super::shelf::Shelf;
use super::spread::{Order, Source, Spread};
use super::store::Store;
use super::taker::Taker;
use super::tally::Tally;
use crate::agent::doors::node_terms;
use cohort_actors::certs::RunAuthority;
use cohort_actors::transport::reach::Reach;
use cohort_actors::{Listener, Shutdown};
use cohort_engine::{SharedRing, WeightRing};
use cohort_model::{Tensor, WeightSet};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::node::{ChunkName, Manifest};
use cohort_protocol::messages::weights::ChunkSince;
use cohort_protocol::version::{PROTOCOL, PROTOCOL_MIN, WEIGHT_DELTAS};
use cohort_protocol::{PolicyVersion, Role, RunId, WorkerId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

const RUN: RunId = RunId(7);
const CHUNK: u32 = 2048;
/// Slots of the head node's ring and of the others.
const SLOTS: (u32, u32) = (3, 2);
const HEAD: u16 = 0;

/// Weights after so many steps, each value moved by what a step at 1e-5 moves it.
fn weights(steps: u64) -> WeightSet {
    let value = |at: u64| {
        let mut draw = fastrand::Rng::with_seed(at);
        let begun = (draw.f32() - 0.5) * 0.2;
        (0..steps).fold(begun, |w, _| w - 1e-5 * (draw.f32() * 2.0 - 1.0))
    };
    // A name of 3 letters, so that values lie beside the words of the image.
    let tensor = |from, n: usize| Tensor { shape: vec![n], data: (from..from + n as u64).map(value).collect() };
    WeightSet([("abc".to_owned(), tensor(0, 5000)), ("b".to_owned(), tensor(5000, 333))].into())
}

fn node(index: u16) -> WorkerId {
    WorkerId { role: Role::Node, index }
}

struct Host {
    ring: Arc<SharedRing>,
    shelf: Arc<Shelf>,
    store: Store,
    taker: Arc<Taker>,
    at: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct World {
    authority: RunAuthority,
    hosts: BTreeMap<u16, Host>,
    spread: Spread,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(hosts: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = RunAuthority::open_or_create(dir.path(), RUN).unwrap();
        let mut world = Self { authority, hosts: BTreeMap::new(), spread: Spread::default(), _dir: dir };
        (HEAD..=hosts).for_each(|host| world.add(host, PROTOCOL));
        world
    }

    /// A host with an empty ring, in the place of another one with this number.
    fn add(&mut self, index: u16, protocol_max: u16) {
        let slots = if index == HEAD { SLOTS.0 } else { SLOTS.1 };
        let (ring, shelf, reach) = (Arc::new(SharedRing::create(slots).unwrap()), Arc::new(Shelf::default()), Reach::default());
        let sockets = reach.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let identity = self.authority.issue(node(index)).unwrap();
        let listener = reach.listen(sockets, &identity).unwrap();
        let at = listener.local_addr();
        let listener: Arc<dyn Listener> = Arc::new(listener);
        let serving = tokio::spawn(holder::serve(listener, node_terms(RUN), ring.clone(), shelf.clone()));
        let (run, worker, numerics) = (RUN, node(index), String::new());
        let hello = Hello { protocol_min: PROTOCOL_MIN, protocol_max, run, worker, pid: 1, incarnation: 0, numerics };
        let taker = Arc::new(Taker::new(reach, identity, hello, Shutdown::new()));
        let store = Store::new(ring.clone(), shelf.clone());
        self.hosts.insert(index, Host { ring, shelf, store, taker, at, serving });
    }

    /// The version in the head node's ring, known to its holder.
    fn publish(&mut self, version: u64) -> Manifest {
        let head = &self.hosts[&HEAD];
        let slot = (version % u64::from(SLOTS.0)) as u32;
        head.ring.publish(slot, version, &weights(version)).unwrap();
        let manifest = manifest::of_slot(&head.ring, slot, PolicyVersion(version), CHUNK).unwrap();
        head.shelf.put(slot, Arc::new(manifest.clone()));
        self.spread.publish(PolicyVersion(version), manifest::chunks(&manifest).unwrap());
        manifest
    }

    /// Takes a version to these hosts; gives how each one's chunks came.
    async fn carry(&mut self, version: u64, to: &[u16]) -> BTreeMap<u16, Tally> {
        let manifest = self.publish(version);
        let (version, mut orders, mut answers) = (PolicyVersion(version), Vec::new(), Vec::new());
        for &index in to {
            let (reply, answer) = oneshot::channel();
            let store = &mut self.hosts.get_mut(&index).unwrap().store;
            store.ask(version, 0, reply);
            store.begin(manifest.clone());
            answers.push((index, answer));
            self.spread.want(index, version, &mut orders);
        }
        let (landed, mut landing) = mpsc::channel(1024);
        let (mut under_way, mut came) = (0, BTreeMap::<u16, Tally>::new());
        loop {
            for order in std::mem::take(&mut orders) {
                let Order::Fetch { to, version, chunk, from } = order else { panic!("{order:?}") };
                let name = ChunkName { version, chunk };
                let from = if let Source::Host(index) = from { index } else { HEAD };
                let (host, at, landed) = (&self.hosts[&to], self.hosts[&from].at, landed.clone());
                let (place, taker) = (host.store.place(name).unwrap().unwrap(), host.taker.clone());
                under_way += 1;
                tokio::spawn(async move {
                    let taken = taker.take_into(place, node(from), at, name).await;
                    landed.send((to, name, taken)).await.unwrap();
                });
            }
            if under_way == 0 {
                break;
            }
            let (to, name, taken) = landing.recv().await.unwrap();
            under_way -= 1;
            let arrived = taken.unwrap();
            match arrived {
                Arrived::Whole(bytes) => came.entry(to).or_default().whole(bytes),
                Arrived::Delta(bytes) => came.entry(to).or_default().delta(bytes),
            }
            self.hosts.get_mut(&to).unwrap().store.landed(name, arrived);
            self.spread.held(to, version, name.chunk, &mut orders);
        }
        for (index, mut answer) in answers {
            let (host, slot) = (self.hosts.get_mut(&index).unwrap(), answer.try_recv().unwrap().unwrap());
            assert_eq!(host.ring.fetch(slot, version.0).unwrap(), weights(version.0), "host {index} has version {version}");
            host.store.released(slot);
        }
        came
    }

    /// What left the head node.
    fn given(&self, version: u64) -> Tally {
        self.hosts[&HEAD].shelf.given(PolicyVersion(version)).unwrap()
    }
}

/// How chunks came: `d` as what changed, `w` whole, `m` some so and some so.
fn kind(tally: &Tally, chunks: u64) -> char {
    assert_eq!(tally.whole_chunks + tally.delta_chunks, chunks, "{tally:?}");
    match (tally.whole_chunks, tally.delta_chunks) {
        (0, _) => 'd',
        (_, 0) => 'w',
        _ => 'm',
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_have_the_version_before_take_what_changed_and_all_end_with_equal_bits() {
    let mut world = World::new(3);
    let chunks = u64::from(manifest::chunks(&world.publish(0)).unwrap());
    // Host 3 comes late, host 1 loses its ring, host 2 skips a version and then two, of which the head node has lost the first. Who takes
    // a chunk from a host that has not the version before takes it whole.
    let plan: [(u64, &[u16], &str); 8] = [
        (1, &[1, 2], "ww"),
        (2, &[1, 2], "dd"),
        (3, &[1, 2, 3], "??w"),
        (4, &[1, 2, 3], "w??"),
        (5, &[1, 3], "dd"),
        (6, &[1, 2, 3], "???"),
        (8, &[1, 3], "dd"),
        (9, &[1, 2, 3], "?w?"),
    ];
    for (version, hosts, kinds) in plan {
        if version == 4 {
            world.add(1, PROTOCOL);
            world.spread.gone(1, &mut Vec::new());
        }
        if version == 8 {
            // Nobody takes it; the slot of version 6 is written when 9 comes.
            world.publish(7);
        }
        let came = world.carry(version, hosts).await;
        for (host, expected) in hosts.iter().zip(kinds.chars()) {
            let (kind, some) = (kind(&came[host], chunks), came[host].delta_chunks > 0);
            assert!(if expected == '?' { some } else { kind == expected }, "version {version}: {came:?}");
        }
        let left = world.given(version);
        assert_eq!(left.whole_chunks + left.delta_chunks, chunks, "version {version}: each chunk left the head node once");
        if version == 5 {
            let full = came[&1].delta_bytes as f64 / manifest::image(&world.publish(5)).bytes().unwrap() as f64;
            assert!(full < 0.8, "{full} of the full set");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_delta_is_refused_and_the_chunk_taken_whole() {
    let mut world = World::new(1);
    let chunks = u64::from(manifest::chunks(&world.publish(0)).unwrap());
    world.carry(1, &[1]).await;
    let old = manifest::of_slot(&world.hosts[&HEAD].ring, 1, PolicyVersion(1), CHUNK).unwrap();
    let since = |chunk| ChunkSince {
        name: ChunkName { version: PolicyVersion(2), chunk },
        base: PolicyVersion(1),
        base_hash: manifest::hash(&old, chunk).unwrap(),
    };
    // Nonsense; longer than the chunk; another chunk's, which can be unpacked.
    let head = &world.hosts[&HEAD];
    head.shelf.keep(&since(0), vec![1, 2, 3].into());
    head.shelf.keep(&since(1), vec![0; CHUNK as usize].into());
    let same = super::delta::between(&[0; CHUNK as usize], &[0; CHUNK as usize], 0).unwrap();
    head.shelf.keep(&since(2), same.into());
    let came = world.carry(2, &[1]).await;
    assert_eq!((came[&1].whole_chunks, came[&1].delta_chunks), (3, chunks - 3));
    assert_eq!(world.given(2).whole_chunks, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_the_version_before_take_and_give_whole_chunks() {
    let mut world = World::new(2);
    world.add(1, WEIGHT_DELTAS - 1);
    let chunks = u64::from(manifest::chunks(&world.publish(0)).unwrap());
    for version in [1, 2, 3] {
        let came = world.carry(version, &[1, 2]).await;
        assert_eq!(kind(&came[&1], chunks), 'w', "version {version}");
        let mixed = if version == 1 { 0 } else { chunks };
        assert_eq!(came[&2].delta_chunks, mixed, "its own end decides: {came:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_that_is_written_meanwhile_is_not_used() {
    let mut world = World::new(1);
    world.carry(1, &[1]).await;
    let manifest = world.publish(2);
    let name = |chunk| ChunkName { version: PolicyVersion(2), chunk };
    let (reply, _answer) = oneshot::channel();
    let host = world.hosts.get_mut(&1).unwrap();
    host.store.ask(PolicyVersion(2), 0, reply);
    host.store.begin(manifest);
    let places: Vec<Place> = (0..3).map(|chunk| host.store.place(name(chunk)).unwrap().unwrap()).collect();
    let at = world.hosts[&HEAD].at;
    let take = async |world: &World, place: &Place, chunk| {
        world.hosts[&1].taker.take_into(place.clone(), node(HEAD), at, name(chunk)).await.unwrap()
    };
    assert!(matches!(take(&world, &places[0], 0).await, Arrived::Delta(_)));
    // The learner writes the older version's slot on the head node: what was made is given, no more is made of it.
    world.hosts[&HEAD].ring.publish(1, 4, &weights(4)).unwrap();
    assert!(matches!(take(&world, &places[0], 0).await, Arrived::Delta(_)));
    assert!(matches!(take(&world, &places[1], 1).await, Arrived::Whole(_)));
    // The host's own copy goes the same way: it does not even ask.
    let ring = &world.hosts[&1].ring;
    let (own, base) = places[2].base.clone().unwrap();
    ring.begin_image(own, &manifest::image(&base)).unwrap();
    assert!(places[2].base(name(2)).is_none());
    assert!(matches!(take(&world, &places[2], 2).await, Arrived::Whole(_)));
}
