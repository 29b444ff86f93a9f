//! The real tracker of chunks and hosts that are numbers: how long a version takes to reach all of them.
//!
//! The model. Every host, the head node included, sends and receives at one rate, over full duplex; a version has as many
//! chunks as SmolLM2's 538 MB in f32; a source sends what was asked of it in that order, a taker receives in the order of
//! arrival, and between an arrival and the next order passes a latency. Time is counted in copies: what one host needs for a
//! whole version from one source. All hosts ask at once.
use anyhow::{Result, ensure};
use cohort_cluster::agent::weights::spread::{Host, Order, Source, Spread};
use cohort_protocol::PolicyVersion;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

/// Chunks of a version.
const CHUNKS: u32 = 135;
/// In a million parts of a copy: 0.1 s where a copy takes 100 s, 1 ms where it takes 1 s.
const LATENCY: u64 = 1000;
/// A copy.
const COPY: u64 = 1_000_000;

/// One version to so many hosts.
pub(crate) struct Spreading {
    /// Hosts.
    pub(crate) hosts: u16,
    /// Until the last one had all, in copies.
    pub(crate) copies: f64,
    /// Copies that left the head node.
    pub(crate) from_head: f64,
    /// Time of the tracker for each chunk that arrived, microseconds.
    pub(crate) tracker_us: f64,
}

/// Spreads it.
pub(crate) fn spread(hosts: u16) -> Result<Spreading> {
    let version = PolicyVersion(1);
    let (mut tracker, mut orders) = (Spread::default(), Vec::new());
    let (mut sends, mut takes) = (BTreeMap::<Source, u64>::new(), vec![0u64; usize::from(hosts) + 1]);
    // When a chunk has left its source (`false`) or arrived (`true`).
    let mut moving = BinaryHeap::new();
    let (mut now, mut arrived, mut from_head) = (0, 0u64, 0u32);
    let chunk_time = COPY / u64::from(CHUNKS);
    let begun = Instant::now();
    let mut tracking = Duration::ZERO;
    tracker.publish(version, CHUNKS);
    (1..=hosts).for_each(|host: Host| tracker.want(host, version, &mut orders));
    tracking += begun.elapsed();
    loop {
        for order in orders.drain(..) {
            let Order::Fetch { to, chunk, from, .. } = order else { anyhow::bail!("{order:?}") };
            from_head += u32::from(from == Source::Head);
            let sends = sends.entry(from).or_default();
            *sends = (now + LATENCY).max(*sends) + chunk_time;
            moving.push(Reverse((*sends, false, to, chunk)));
        }
        let Some(Reverse((at, arrives, to, chunk))) = moving.pop() else { break };
        if !arrives {
            let takes = &mut takes[usize::from(to)];
            *takes = at.max(*takes + chunk_time);
            moving.push(Reverse((*takes, true, to, chunk)));
            continue;
        }
        (now, arrived) = (at, arrived + 1);
        let begun = Instant::now();
        tracker.held(to, version, chunk, &mut orders);
        tracking += begun.elapsed();
    }
    let all = u64::from(hosts) * u64::from(CHUNKS);
    ensure!(arrived == all, "{arrived} chunks of {all} arrived");
    Ok(Spreading {
        hosts,
        copies: now as f64 / COPY as f64,
        from_head: f64::from(from_head) / f64::from(CHUNKS),
        tracker_us: tracking.as_secs_f64() * 1e6 / all as f64,
    })
}
