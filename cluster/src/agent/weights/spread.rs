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
use super::uploads::Uploads;
use super::wish::Wish;
use cohort_protocol::PolicyVersion;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

/// Chunks under way from one host.
const UPLOADS: usize = 16;
/// Holders of a chunk of which the least busy one gives it. A few drawn are nearly as good as all of them.
const ASKED: usize = 16;
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

/// One version on its way.
#[derive(Debug)]
struct Version {
    chunks: u32,
    /// The first so many have been hashed.
    hashed: u32,
    holders: Vec<BTreeSet<Host>>,
    wishes: BTreeMap<Host, Wish>,
    /// Hosts with room for a chunk that nobody could give when it was last looked at, in that order.
    starved: VecDeque<Host>,
    /// Chunks that leave the head node now.
    leaving: BTreeSet<u32>,
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

impl Version {
    /// A host wants it no more, or is gone.
    fn forget(&mut self, host: Host) -> Option<Wish> {
        let wish = self.wishes.remove(&host)?;
        self.starved.retain(|&starved| starved != host);
        Some(wish)
    }

    /// S1 to S3: from a host that has it, the least busy one of a few; else from the head node, unless somebody is taking it there.
    /// Hosts begin at different places, so that they have something to give each other.
    fn next_for(&self, host: Host, uploads: &Uploads) -> Option<(u32, Source)> {
        let wish = self.wishes.get(&host).filter(|wish| wish.has_room())?;
        let busy = |source| uploads.of(source);
        // The golden ratio's multiples lie far from each other.
        let begin = (u64::from(host) * 2_654_435_769 % u64::from(self.chunks.max(1))) as u32;
        // S5.
        let known = |&&chunk: &&u32| chunk < self.hashed || planted!(UnhashedGiven);
        let in_turn = wish.missing.range(begin..).chain(wish.missing.range(..begin)).filter(known);
        let mut at_head = None;
        for &chunk in in_turn.filter(|chunk| !wish.under_way.contains_key(chunk)) {
            let all = &self.holders[chunk as usize];
            let others = |&&h: &&Host| h != host && !wish.avoid.contains(&(chunk, h));
            // Each host begins with those behind itself, so that not all ask the same ones.
            let around = all.range((Excluded(host), Unbounded)).chain(all.range(..host));
            let mut holders = around.filter(others);
            let few = holders.clone().take(ASKED).map(|&h| Source::Host(h));
            let free = few.filter(|&s| busy(s) < UPLOADS).min_by_key(|&s| busy(s));
            if let Some(source) = free {
                return Some((chunk, source));
            }
            let leaving = self.leaving.contains(&chunk) && !planted!(HeadGivesTwice);
            if at_head.is_none() && holders.next().is_none() && !leaving && busy(Source::Head) < UPLOADS {
                at_head = Some((chunk, Source::Head));
            }
        }
        at_head
    }
}

#[cfg(test)]
mod tests {
    use super::super::wish::WINDOW;
    use super::*;

    const V: PolicyVersion = PolicyVersion(3);

    /// Hosts that carry out orders in an order drawn from a seed; `faults` of 100 deliveries fail.
    struct World {
        spread: Spread,
        orders: Vec<Order>,
        has: BTreeMap<Host, BTreeSet<u32>>,
        draw: fastrand::Rng,
        faults: u32,
        given_up: BTreeSet<Host>,
        from_head: u32,
    }

    impl World {
        fn new(chunks: u32, hosts: &[Host], seed: u64, faults: u32) -> Self {
            let mut world = Self {
                spread: Spread::default(),
                orders: Vec::new(),
                has: hosts.iter().map(|&h| (h, BTreeSet::new())).collect(),
                draw: fastrand::Rng::with_seed(seed),
                faults,
                given_up: BTreeSet::new(),
                from_head: 0,
            };
            world.spread.publish(V, chunks);
            for &host in hosts {
                world.spread.want(host, V, &mut world.orders);
            }
            world
        }

        fn step(&mut self) {
            let order = self.orders.swap_remove(self.draw.usize(..self.orders.len()));
            let mut told = Vec::new();
            match order {
                Order::GiveUp { to, .. } => {
                    self.given_up.insert(to);
                }
                Order::Fetch { to, version, chunk, from } if self.has.contains_key(&to) => {
                    self.from_head += u32::from(from == Source::Head);
                    let there = match from {
                        Source::Head => true,
                        Source::Host(h) => self.has.get(&h).is_some_and(|has| has.contains(&chunk)),
                    };
                    if there && self.draw.u32(..100) >= self.faults {
                        self.has.entry(to).or_default().insert(chunk);
                        self.spread.held(to, version, chunk, &mut told);
                    } else {
                        self.spread.failed(to, version, chunk, "lost", &mut told);
                    }
                }
                Order::Fetch { .. } => {}
            }
            self.orders.extend(told);
        }
    }

    #[test]
    fn eight_hosts_cost_the_head_node_what_one_does() {
        for seed in 0..50 {
            for hosts in [1, 2, 8] {
                let names: Vec<Host> = (1..=hosts).collect();
                let mut world = World::new(135, &names, seed, 0);
                while !world.orders.is_empty() {
                    world.step();
                }
                assert!(world.has.values().all(|has| has.len() == 135));
                assert_eq!(world.from_head, 135, "{hosts} hosts");
                assert!(world.spread.uploads.none());
            }
        }
    }

    /// S5: hashing comes in between deliveries, at whatever pace.
    #[test]
    fn chunks_move_as_they_are_hashed_and_each_leaves_the_head_node_once() {
        for seed in 0..50 {
            let names: Vec<Host> = (1..=1 + seed as u16 % 8).collect();
            let mut world = World::new(1, &[], seed, 0);
            world.has = names.iter().map(|&h| (h, BTreeSet::new())).collect();
            let (version, mut hashed) = (PolicyVersion(4), 0);
            world.orders = world.spread.announce(version, 135);
            for host in names {
                world.spread.want(host, version, &mut world.orders);
            }
            assert!(world.orders.is_empty(), "nothing is hashed");
            while hashed < 135 || !world.orders.is_empty() {
                if hashed < 135 && (world.orders.is_empty() || world.draw.u32(..4) == 0) {
                    hashed = (hashed + world.draw.u32(1..20)).min(135);
                    world.spread.hashed(version, hashed, &mut world.orders);
                }
                let unknown = |order: &Order| matches!(order, Order::Fetch { chunk, .. } if *chunk >= hashed);
                assert!(!world.orders.iter().any(unknown), "seed {seed}: {:?} of {hashed}", world.orders);
                if !world.orders.is_empty() {
                    world.step();
                }
            }
            assert!(world.has.values().all(|has| has.len() == 135), "seed {seed}");
            assert_eq!(world.from_head, 135, "seed {seed}");
            assert!(world.spread.uploads.none());
        }
    }

    #[test]
    fn a_version_that_was_written_while_it_was_hashed_is_withdrawn() {
        let (mut spread, mut orders) = (Spread::default(), Vec::new());
        spread.announce(V, 20);
        for host in [1, 2] {
            spread.want(host, V, &mut orders);
        }
        spread.hashed(V, 5, &mut orders);
        assert_eq!(orders.len(), 5);
        orders.clear();
        spread.withdraw(V, "slot 1 was written anew", &mut orders);
        let told = |order: &Order| matches!(order, Order::GiveUp { version: V, why, .. } if why.contains("slot 1"));
        assert!(orders.len() == 2 && orders.iter().all(told), "{orders:?}");
        assert!(spread.uploads.none() && !spread.knows(V));
    }

    #[test]
    fn losses_and_deaths_leave_the_others_complete() {
        for seed in 0..300 {
            let mut world = World::new(40, &[1, 2, 3, 4, 5], seed, 10);
            let dies_at = world.draw.usize(..120);
            for turn in 0.. {
                if turn == dies_at {
                    let (host, mut told) = (world.draw.u16(1..=5), Vec::new());
                    world.has.remove(&host);
                    world.spread.gone(host, &mut told);
                    world.orders.extend(told);
                }
                if world.orders.is_empty() {
                    break;
                }
                world.step();
            }
            for (host, has) in &world.has {
                assert!(has.len() == 40 || world.given_up.contains(host), "seed {seed}: host {host} has {}", has.len());
            }
            assert!(world.spread.uploads.none(), "seed {seed}: {:?}", world.spread.uploads);
        }
    }

    #[test]
    fn a_late_host_is_served_by_the_others_alone() {
        let mut world = World::new(64, &[1, 2], 1, 0);
        while !world.orders.is_empty() {
            world.step();
        }
        world.has.insert(9, BTreeSet::new());
        world.spread.want(9, V, &mut world.orders);
        while !world.orders.is_empty() {
            world.step();
        }
        assert_eq!(world.has[&9].len(), 64);
        assert_eq!(world.from_head, 64);
    }

    /// S4, and that it costs little: hosts get their chunks hardly later than if each piece of news were told to all.
    #[test]
    fn news_wakes_a_few_and_nobody_is_forgotten() {
        let hosts: Vec<Host> = (1..=300).collect();
        let mut world = World::new(64, &hosts, 7, 0);
        let (mut news, mut most) = (0, 0);
        while !world.orders.is_empty() {
            let before = world.orders.len();
            world.step();
            (news, most) = (news + 1, most.max(world.orders.len() + 1 - before));
        }
        assert!(world.has.values().all(|has| has.len() == 64));
        assert_eq!((news, world.from_head), (300 * 64, 64));
        assert!(most <= UPLOADS + 2 * WINDOW, "one piece of news gave {most} orders");
    }

    #[test]
    fn a_head_node_that_cannot_give_ends_the_wish() {
        let mut world = World::new(4, &[1], 1, 100);
        while !world.orders.is_empty() {
            world.step();
        }
        assert_eq!(world.given_up, BTreeSet::from([1]));
    }

    #[test]
    fn windows_are_kept_and_old_versions_forgotten() {
        let mut spread = Spread::default();
        let mut orders = Vec::new();
        spread.publish(V, 100);
        for host in 1..=4 {
            spread.want(host, V, &mut orders);
        }
        assert_eq!(orders.len(), UPLOADS, "the head node's");
        assert!((1..=4).all(|h| orders.iter().filter(|o| matches!(o, Order::Fetch { to, .. } if *to == h)).count() <= WINDOW));
        assert!(spread.publish(PolicyVersion(4), 100).is_empty());
        let told = spread.publish(PolicyVersion(5), 100);
        let given_up = |told: &[Order]| -> Vec<Host> {
            told.iter().filter_map(|o| if let Order::GiveUp { to, version: V, .. } = o { Some(*to) } else { None }).collect()
        };
        assert_eq!(given_up(&told), [1, 2, 3, 4], "everybody still lacked something of it");
        assert!(!spread.knows(V) && spread.knows(PolicyVersion(5)));
        assert!(spread.uploads.none());
        // What is on its way then may still arrive; where it does not, its host is told too.
        let mut late = Spread::default();
        late.publish(V, 1);
        late.want(7, V, &mut orders);
        assert!(late.publish(PolicyVersion(4), 1).is_empty() && late.publish(PolicyVersion(5), 1).is_empty());
        let mut told = Vec::new();
        late.failed(7, V, 0, "lost", &mut told);
        assert_eq!(given_up(&told), [7]);
    }
}
