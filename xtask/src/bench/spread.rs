//! New weights on their way to other hosts: from the head node's ring into the rings of one host and of eight, over QUIC on
//! loopback, each host giving on what it has; and as what changed after a step ([`deltas`]). Beside it the same bytes
//! over a bare QUIC stream ([`bare`]), each time just before.
use super::bare_stream::{Datagrams, bare};
use super::{Subject, deltas, median};
use anyhow::{Context, Result, anyhow};
use cohort_actors::certs::RunAuthority;
use cohort_actors::transport::reach::Reach;
use cohort_actors::{AcceptTerms, Listener, Shutdown};
use cohort_cluster::agent::weights::manifest::{self, CHUNK};
use cohort_cluster::agent::weights::shelf::Shelf;
use cohort_cluster::agent::weights::spread::{Order, Source, Spread};
use cohort_cluster::agent::weights::store::Store;
use cohort_cluster::agent::weights::tally::Tally;
use cohort_cluster::agent::weights::{holder, taker::Taker};
use cohort_engine::{SharedRing, WeightRing};
use cohort_model::{Tensor, WeightSet};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::node::{ChunkHashes, ChunkName, Manifest};
use cohort_protocol::version::{PROTOCOL, PROTOCOL_MIN};
use cohort_protocol::{Epoch, PolicyVersion, Role, RunId, WorkerId};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const RUN: RunId = RunId(1);
const VERSION: PolicyVersion = PolicyVersion(1);
/// Hosts that take a version at the same time.
const HOSTS: [u16; 2] = [1, 8];
/// Between two measurements.
const SETTLED: Duration = Duration::from_millis(500);

/// A host: its ring, what fills it, what serves it.
struct Host {
    ring: Arc<SharedRing>,
    shelf: Arc<Shelf>,
    store: Store,
    taker: Arc<Taker>,
    at: SocketAddr,
    serving: JoinHandle<()>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn node(index: u16) -> WorkerId {
    WorkerId { role: Role::Node, index }
}

fn host(authority: &RunAuthority, index: u16, slots: u32, stop: &Shutdown) -> Result<Host> {
    let (ring, shelf) = (Arc::new(SharedRing::create(slots)?), Arc::new(Shelf::default()));
    let reach = Reach::default();
    let listener = reach.listen(reach.bind((Ipv4Addr::LOCALHOST, 0).into())?, &authority.issue(node(index))?)?;
    let at = listener.local_addr();
    let terms = AcceptTerms {
        run: RUN,
        epoch: Epoch(0),
        numerics: String::new(),
        corrects: false,
        deadline: Duration::from_secs(5),
        roles: AcceptTerms::NODES,
    };
    let listener: Arc<dyn Listener> = Arc::new(listener);
    let serving = tokio::spawn(holder::serve(listener, terms, ring.clone(), shelf.clone()));
    let hello = Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL,
        run: RUN,
        worker: node(index),
        pid: std::process::id(),
        incarnation: 0,
        numerics: String::new(),
    };
    let taker = Arc::new(Taker::new(reach, authority.issue(node(index))?, hello, stop.clone()));
    let store = Store::new(ring.clone(), shelf.clone());
    Ok(Host { ring, shelf, store, taker, at, serving })
}

/// The head node and its hosts.
pub(super) struct Route {
    head: Host,
    others: Vec<Host>,
    spread: Spread,
    stop: Shutdown,
}

impl Drop for Route {
    fn drop(&mut self) {
        self.stop.trigger("measured");
    }
}

impl Route {
    /// Rings of so many slots, empty.
    pub(super) fn new(authority: &RunAuthority, hosts: u16, slots: u32) -> Result<Self> {
        let stop = Shutdown::new();
        let head = host(authority, 0, slots, &stop)?;
        let others = (1..=hosts).map(|index| host(authority, index, slots, &stop)).collect::<Result<Vec<_>>>()?;
        Ok(Self { head, others, spread: Spread::default(), stop })
    }

    /// Seconds until every host has the version, hashing included, and what left the head node for it.
    pub(super) async fn carry(&mut self, version: PolicyVersion, slot: u32, weights: &WeightSet) -> Result<(f64, Tally)> {
        let Self { head, others, spread, .. } = self;
        head.ring.publish(slot, version.0, weights)?;
        let begun = Instant::now();
        let manifest = manifest::unhashed(&head.ring, slot, version, CHUNK).map_err(|e| anyhow!(e))?;
        head.shelf.put(slot, Arc::new(manifest.clone()));
        let (mut orders, mut answers) = (Vec::new(), Vec::new());
        spread.announce(version, manifest::chunks(&manifest).map_err(|e| anyhow!(e))?);
        for (index, other) in (1..).zip(others.iter_mut()) {
            let (reply, answer) = oneshot::channel();
            other.store.ask(version, slot, reply);
            other.store.begin(manifest.clone());
            answers.push(answer);
            spread.want(index, version, &mut orders);
        }
        let (landed, mut landing) = mpsc::channel(1024);
        let (mut told, hashing) = hash_beside(head, slot, manifest.clone());
        let (mut under_way, mut is_hashed) = (0, false);
        loop {
            for order in orders.drain(..) {
                let Order::Fetch { to, version, chunk, from } = order else { anyhow::bail!("{order:?}") };
                let (source, at) = match from {
                    Source::Head => (0, head.at),
                    Source::Host(index) => (index, others[usize::from(index) - 1].at),
                };
                let other = &others[usize::from(to) - 1];
                let name = ChunkName { version, chunk };
                let place = other.store.place(name).flatten().context("a chunk that is not wanted")?;
                let (taker, landed) = (other.taker.clone(), landed.clone());
                under_way += 1;
                tokio::spawn(async move {
                    let taken = taker.take_into(place, node(source), at, name).await;
                    // The measurement has ended with an error.
                    let _ = landed.send((to, name, taken)).await;
                });
            }
            if under_way == 0 && is_hashed {
                break;
            }
            let (to, name, taken) = tokio::select! {
                part = told.recv(), if !is_hashed => {
                    let Some(part) = part else {
                        is_hashed = true;
                        continue;
                    };
                    others.iter_mut().for_each(|other| other.store.learn(&part));
                    spread.hashed(version, part.first + (part.hashes.len() / 32) as u32, &mut orders);
                    continue;
                }
                landed = landing.recv() => landed.context("the channel ended")?,
            };
            let arrived = taken.map_err(|e| anyhow!("chunk {}: {e}", name.chunk))?;
            under_way -= 1;
            others[usize::from(to) - 1].store.landed(name, arrived);
            spread.held(to, name.version, name.chunk, &mut orders);
        }
        let seconds = begun.elapsed().as_secs_f64();
        hashing.await?.map_err(|e| anyhow!(e))?;
        for (other, mut answer) in others.iter_mut().zip(answers) {
            let slot = answer.try_recv()?.map_err(|e| anyhow!(e))?;
            anyhow::ensure!(other.ring.fetch(slot, version.0)?.digest() == manifest.digest, "a host has other weights");
            other.store.released(slot);
        }
        Ok((seconds, head.shelf.given(version).context("the head node has lost the version")?))
    }
}

/// Hashes a slot of the head node's ring, as its agent does: parts as they come, then whether all is well.
fn hash_beside(head: &Host, slot: u32, manifest: Manifest) -> (mpsc::Receiver<ChunkHashes>, JoinHandle<Result<(), String>>) {
    let (tell, told) = mpsc::channel(1024);
    let (ring, shelf, version) = (head.ring.clone(), head.shelf.clone(), manifest.version);
    let hashing = tokio::task::spawn_blocking(move || {
        manifest::hash_in_parts(&ring, slot, &manifest, &|first, hashes: Vec<u8>| {
            shelf.learn(version, first, &hashes);
            // The measurement has ended with an error.
            let _ = tell.blocking_send(ChunkHashes { version, first, hashes });
        })
    });
    (told, hashing)
}

/// Seconds until every host has the version, hashing included, and the bytes that left the head node for it.
async fn once(authority: &RunAuthority, weights: &WeightSet, hosts: u16) -> Result<(f64, u64)> {
    // With one slot there is no older version: chunks travel whole.
    let mut route = Route::new(authority, hosts, 1)?;
    // A first round touches the memory of the rings, as every version but a run's first finds them.
    for other in &route.others {
        other.ring.publish(0, 0, weights)?;
    }
    let (seconds, left) = route.carry(VERSION, 0, weights).await?;
    anyhow::ensure!(left.delta_chunks == 0, "{left:?}");
    Ok((seconds, left.whole_bytes))
}

/// A set of weights of 540 MB, the bytes of SmolLM2-135M in f32, whole; then the model's own after a step, as what changed.
pub(crate) async fn between_hosts(subject: &Subject) -> Result<Value> {
    let runs = subject.runs;
    let parameters = 134_515_008;
    let data: Vec<f32> =
        (0..parameters).map(|i| f32::from_bits(0x3c00_0000 ^ (i as u32).wrapping_mul(2_654_435_761) >> 9)).collect();
    let weights = WeightSet([("w".to_owned(), Tensor { shape: vec![parameters], data })].into());
    let bytes = 4 * parameters;
    let dir = tempfile::tempdir()?;
    let authority = RunAuthority::open_or_create(&dir.path().join("certs"), RUN)?;
    let (mut seconds, mut ratios, mut long_ratios) = (HOSTS.map(|_| Vec::new()), HOSTS.map(|_| Vec::new()), Vec::new());
    let (mut bare_seconds, mut long_seconds) = (Vec::new(), Vec::new());
    let mut left = HOSTS.map(|_| 0);
    for run in 0..=runs {
        for (at, hosts) in HOSTS.into_iter().enumerate() {
            // What carried the last bytes is being taken down.
            tokio::time::sleep(SETTLED).await;
            let alone = bare(bytes, Datagrams::Default).await?;
            tokio::time::sleep(SETTLED).await;
            let long = bare(bytes, Datagrams::Long).await?;
            let (took, from_head) = once(&authority, &weights, hosts).await?;
            left[at] = from_head;
            if run > 0 {
                bare_seconds.push(alone);
                long_seconds.push(long);
                seconds[at].push(took);
                ratios[at].push(f64::from(hosts) * alone / took);
                if hosts == 1 {
                    long_ratios.push(long / took);
                }
            }
        }
    }
    drop(weights);
    let changed = deltas::to_one_host(subject, &authority).await?;
    let [one, eight] = seconds.map(median);
    let [of_bare, received_of_bare] = ratios.map(median);
    let (bare, long) = (median(bare_seconds), median(long_seconds));
    Ok(json!({
        "bytes": bytes, "bare_quic_s": bare, "bare_quic_long_s": long, "to_1_s": one, "to_8_s": eight,
        "to_1_of_bare": of_bare, "to_1_of_bare_long": median(long_ratios), "to_8_received_of_bare": received_of_bare,
        "head_bytes_1": left[0], "head_bytes_8": left[1], "deltas": changed,
    }))
}
