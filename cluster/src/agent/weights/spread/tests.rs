//! Hosts that carry out orders in any order, with losses and deaths.
use super::wish::WINDOW;
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
