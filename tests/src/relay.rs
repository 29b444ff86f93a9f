//! A UDP relay that disturbs what it carries: loss, delay, jitter, reordering, duplicates, flipped bits, and directions that
//! are cut. It stands between a host and its head node; the kernel needs no help (`tc netem` is not everywhere, and wants
//! root).
//!
//! What happens to the nth datagram of a flow is drawn from (seed, flow, n): the same datagrams meet the same fate. Which
//! datagrams there are is the peers' doing, so a run under a relay is not repeated to the byte; its weights are.
use anyhow::{Context, Result};
use std::cmp::Ordering as Order;
use std::collections::{BinaryHeap, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at whether the relay is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Datagrams under way; more are lost, as in any router.
const QUEUE: usize = 1 << 16;

/// What is done to datagrams. The default carries everything at once.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Weather {
    /// Part of the datagrams that is lost, 0 to 1.
    pub loss: f64,
    /// Each takes at least so long.
    pub delay: Duration,
    /// And up to so much more, evenly drawn: later ones overtake.
    pub jitter: Duration,
    /// Part that is sent twice, each copy with its own delay.
    pub duplicate: f64,
    /// Part of which one bit is flipped.
    pub corrupt: f64,
    /// Nothing passes towards the head node.
    pub cut_in: bool,
    /// Nothing passes from the head node.
    pub cut_out: bool,
}

/// What became of the datagrams so far.
#[derive(Debug, Default)]
pub struct Fates {
    /// Sent on, copies included.
    pub carried: AtomicU64,
    /// Lost by chance or for want of room.
    pub lost: AtomicU64,
    /// Sent twice.
    pub doubled: AtomicU64,
    /// Sent on with a flipped bit.
    pub corrupted: AtomicU64,
    /// Sent on after a later one of their flow.
    pub overtaken: AtomicU64,
    /// Dropped in a direction that was cut.
    pub cut: AtomicU64,
}

impl Fates {
    /// Carried, lost, doubled, corrupted, overtaken.
    #[must_use]
    pub fn counts(&self) -> [u64; 5] {
        [&self.carried, &self.lost, &self.doubled, &self.corrupted, &self.overtaken].map(|n| n.load(Ordering::Relaxed))
    }
}

/// A relay; ends when dropped.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Listens on `ports` of `front` and carries to the same ports of `back`, and the answers back. `back` sees `front` as
    /// where the datagrams come from.
    ///
    /// # Errors
    /// A port that cannot be bound.
    pub fn start(seed: u64, weather: Weather, front: IpAddr, back: IpAddr, ports: &[u16]) -> Result<Self> {
        let shared = Arc::new(Shared {
            seed,
            weather: Mutex::new(weather),
            fates: Fates::default(),
            under_way: Mutex::new(BinaryHeap::new()),
            more: Condvar::new(),
            over: AtomicBool::new(false),
            flows: AtomicU64::new(0),
        });
        let mut relay = Self { shared: shared.clone(), threads: Vec::new() };
        for &port in ports {
            let at = SocketAddr::new(front, port);
            let socket = Arc::new(UdpSocket::bind(at).with_context(|| format!("bind {at}"))?);
            socket.set_read_timeout(Some(LOOK))?;
            let (shared, to) = (shared.clone(), SocketAddr::new(back, port));
            relay.threads.push(std::thread::spawn(move || shared.listen(&socket, front, to)));
        }
        relay.threads.push(std::thread::spawn(move || shared.deliver()));
        Ok(relay)
    }

    /// Other weather from now on; what is under way arrives as it was to.
    pub fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut lock(&self.shared.weather));
    }

    /// What became of the datagrams so far.
    #[must_use]
    pub fn fates(&self) -> &Fates {
        &self.shared.fates
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // One that panicked has failed its test already.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    weather: Mutex<Weather>,
    fates: Fates,
    under_way: Mutex<BinaryHeap<Datagram>>,
    more: Condvar,
    over: AtomicBool,
    flows: AtomicU64,
}

/// One direction between a client and a port.
#[derive(Debug)]
struct Flow {
    number: u64,
    /// Towards the head node.
    inwards: bool,
    seen: AtomicU64,
    /// Number of the latest that was sent on.
    newest: AtomicU64,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

/// A datagram under way.
#[derive(Debug)]
struct Datagram {
    due: Instant,
    flow: Arc<Flow>,
    number: u64,
    bytes: Arc<[u8]>,
}

impl Ord for Datagram {
    /// The heap's greatest is the one that is due first.
    fn cmp(&self, other: &Self) -> Order {
        (other.due, other.flow.number, other.number).cmp(&(self.due, self.flow.number, self.number))
    }
}

impl PartialOrd for Datagram {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Datagram {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Datagram {}

impl Shared {
    /// Reads a port of the front; every client gets a socket of its own towards the back.
    fn listen(self: &Arc<Self>, front: &Arc<UdpSocket>, ip: IpAddr, to: SocketAddr) {
        let mut clients: HashMap<SocketAddr, Arc<Flow>> = HashMap::new();
        let mut readers = Vec::new();
        self.read(front, |from, bytes| {
            if !clients.contains_key(&from) {
                let Ok(back) = UdpSocket::bind((ip, 0)) else { return };
                let back = Arc::new(back);
                let inwards = self.flow(true, back.clone(), to);
                let outwards = self.flow(false, front.clone(), from);
                let shared = self.clone();
                readers.push(std::thread::spawn(move || {
                    if back.set_read_timeout(Some(LOOK)).is_ok() {
                        shared.read(&back, |_, bytes| shared.take(&outwards, bytes));
                    }
                }));
                clients.insert(from, inwards);
            }
            self.take(&clients[&from], bytes);
        });
        for reader in readers {
            // As in `Relay::drop`.
            let _ = reader.join();
        }
    }

    fn flow(&self, inwards: bool, socket: Arc<UdpSocket>, to: SocketAddr) -> Arc<Flow> {
        let number = self.flows.fetch_add(1, Ordering::Relaxed);
        Arc::new(Flow { number, inwards, seen: AtomicU64::new(0), newest: AtomicU64::new(0), socket, to })
    }

    fn read(&self, socket: &UdpSocket, mut each: impl FnMut(SocketAddr, &[u8])) {
        let mut buffer = vec![0; 1 << 16];
        while !self.over.load(Ordering::Relaxed) {
            match socket.recv_from(&mut buffer) {
                Ok((len, from)) => each(from, &buffer[..len]),
                // Timeouts, and what ICMP says of a peer that is gone.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Draws the fate of a datagram.
    fn take(&self, flow: &Arc<Flow>, bytes: &[u8]) {
        let weather = *lock(&self.weather);
        let number = flow.seen.fetch_add(1, Ordering::Relaxed);
        let cut = if flow.inwards { weather.cut_in } else { weather.cut_out };
        if cut {
            self.fates.cut.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let draw = |purpose| draw(self.seed, flow.number, number, purpose);
        if draw(0) < weather.loss {
            self.fates.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut bytes: Arc<[u8]> = bytes.into();
        if draw(1) < weather.corrupt && !bytes.is_empty() {
            let mut changed = bytes.to_vec();
            let bit = (draw(2) * (changed.len() * 8) as f64) as usize;
            changed[bit / 8] ^= 1 << (bit % 8);
            bytes = changed.into();
            self.fates.corrupted.fetch_add(1, Ordering::Relaxed);
        }
        let copies = 1 + u64::from(draw(3) < weather.duplicate);
        self.fates.doubled.fetch_add(copies - 1, Ordering::Relaxed);
        let now = Instant::now();
        let mut under_way = lock(&self.under_way);
        for copy in 0..copies {
            if under_way.len() == QUEUE {
                self.fates.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let due = now + weather.delay + weather.jitter.mul_f64(draw(4 + copy));
            under_way.push(Datagram { due, flow: flow.clone(), number, bytes: bytes.clone() });
        }
        drop(under_way);
        self.more.notify_one();
    }

    /// Sends on what is due.
    fn deliver(&self) {
        let mut under_way = lock(&self.under_way);
        while !self.over.load(Ordering::Relaxed) {
            let now = Instant::now();
            match under_way.peek().map(|next| next.due) {
                Some(due) if due <= now => {
                    let Some(datagram) = under_way.pop() else { continue };
                    drop(under_way);
                    self.send(&datagram);
                    under_way = lock(&self.under_way);
                }
                next => {
                    let wait = next.map_or(LOOK, |due| (due - now).min(LOOK));
                    under_way = self.more.wait_timeout(under_way, wait).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    fn send(&self, datagram: &Datagram) {
        let newest = datagram.flow.newest.fetch_max(datagram.number, Ordering::Relaxed);
        self.fates.overtaken.fetch_add(u64::from(newest > datagram.number), Ordering::Relaxed);
        self.fates.carried.fetch_add(1, Ordering::Relaxed);
        // A peer that is gone does not hear it; to whoever sent it, it was lost.
        let _ = datagram.flow.socket.send_to(&datagram.bytes, datagram.flow.to);
    }
}

/// A number in [0, 1) that these four determine (the mixing of SplitMix64).
fn draw(seed: u64, flow: u64, number: u64, purpose: u64) -> f64 {
    let mixed = [flow, number, purpose].into_iter().fold(seed, |state, part| {
        let mut z = state.wrapping_add(part.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

/// A thread that panicked has failed its test; the others may still look.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends 200 numbered datagrams through a relay and gives what arrived, in its order.
    fn through(weather: Weather, last: u8) -> (Vec<Vec<u8>>, [u64; 5]) {
        let (front, back) = (IpAddr::from([127, 44, 0, last]), IpAddr::from([127, 44, 1, last]));
        let server = UdpSocket::bind((back, 7000)).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let relay = Relay::start(9, weather, front, back, &[7000]).unwrap();
        let client = UdpSocket::bind((front, 0)).unwrap();
        for n in 0..200_u32 {
            client.send_to(&n.to_le_bytes(), (front, 7000)).unwrap();
        }
        let mut arrived = Vec::new();
        let mut buffer = [0; 16];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            arrived.push(buffer[..len].to_vec());
            server.send_to(b"heard", from).unwrap();
        }
        if !arrived.is_empty() && !weather.cut_out && weather.loss == 0.0 {
            client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap().1, SocketAddr::new(front, 7000), "answers come back");
        }
        (arrived, relay.fates().counts())
    }

    #[test]
    fn fair_weather_carries_everything_in_order() {
        let (arrived, _) = through(Weather::default(), 1);
        assert_eq!(arrived, (0..200_u32).map(|n| n.to_le_bytes().to_vec()).collect::<Vec<_>>());
    }

    #[test]
    fn foul_weather_does_what_it_says_and_a_seed_repeats_it() {
        let weather =
            Weather { loss: 0.2, duplicate: 0.1, corrupt: 0.1, jitter: Duration::from_millis(20), ..Weather::default() };
        let (mut once, [_, lost, doubled, corrupted, overtaken]) = through(weather, 2);
        let (mut twice, _) = through(weather, 3);
        assert!(lost > 40 && doubled > 10 && corrupted > 10 && overtaken > 25, "{lost} {doubled} {corrupted} {overtaken}");
        once.sort();
        twice.sort();
        assert_eq!(once, twice, "the same datagrams met the same fate");
    }

    #[test]
    fn a_cut_direction_carries_nothing() {
        assert!(through(Weather { cut_in: true, ..Weather::default() }, 4).0.is_empty());
        assert_eq!(through(Weather { cut_out: true, ..Weather::default() }, 5).0.len(), 200);
    }
}
