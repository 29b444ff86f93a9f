//! Many seeds, each to its end; the same seed twice; one seed at length.
use crate::setting::{Point, Setting, points};
use crate::world::{Ran, World};
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of a test run; a soak asks for more.
const SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{variable}={text}: {e}")))
}

/// What many seeds came to.
#[derive(Default)]
struct Sums {
    crashes: BTreeMap<Point, u32>,
    counts: BTreeMap<&'static str, u64>,
    /// The lowest seed that failed, and what is to be said of it.
    failed: Option<(u64, String)>,
}

/// What to say of a seed that fails.
fn report(seed: u64, ran: &Ran) -> String {
    let broken = ran.broken.as_ref().map_or_else(String::new, |b| format!("{}: {}", b.rule, b.what));
    let last = ran.last.join("\n");
    format!(
        "{last}\nseed {seed}, after {:.3} s of its time, breaks {broken}\nCOHORT_SIM_SEED={seed} cargo test -p cohort-tests --test sim one_seed -- --nocapture",
        ran.took.as_secs_f64()
    )
}

#[test]
fn whatever_goes_wrong_nothing_is_lost_and_the_run_finishes() {
    let first = number("COHORT_SIM_FIRST").unwrap_or(0);
    let count = number("COHORT_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, sums) = (AtomicU64::new(first), Mutex::new(Sums::default()));
    let work = || {
        while let seed = next.fetch_add(1, Ordering::Relaxed)
            && seed < first + count
        {
            let ran = World::run(Setting::of(seed)).unwrap();
            let mut sums = sums.lock().unwrap();
            if ran.broken.is_some() && sums.failed.as_ref().is_none_or(|(earlier, _)| seed < *earlier) {
                next.store(u64::MAX / 2, Ordering::Relaxed);
                sums.failed = Some((seed, report(seed, &ran)));
            }
            ran.crashes.into_iter().for_each(|(point, n)| *sums.crashes.entry(point).or_default() += n);
            ran.counts.into_iter().for_each(|(what, n)| *sums.counts.entry(what).or_default() += n);
        }
    };
    // A soak has the machine for itself.
    let threads = if count > SEEDS { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let Sums { crashes, counts, failed } = sums.into_inner().unwrap();
    if let Some((_, report)) = failed {
        panic!("{report}");
    }
    let _ = writeln!(std::io::stderr(), "{count} seeds: {counts:?}; crashes: {crashes:?}");
    if count >= SEEDS {
        // The troubles really came.
        let missed: Vec<Point> =
            points(&Setting::calm(1, 0).plan).into_iter().filter(|point| !crashes.contains_key(point)).collect();
        assert!(missed.is_empty(), "no coordinator died at {missed:?}");
        for what in ["chunks", "deltas", "deltas refused"] {
            assert!(counts.get(what).is_some_and(|n| *n > 0), "no {what}");
        }
    }
}

#[test]
fn a_seed_decides_everything() {
    for seed in [3, 8, 21, 46] {
        let (one, two) = (World::run(Setting::of(seed)).unwrap(), World::run(Setting::of(seed)).unwrap());
        assert_eq!(one.trace, two.trace, "seed {seed}");
        let other = World::run(Setting::of(seed + 100)).unwrap();
        assert_ne!(one.trace, other.trace);
    }
}

/// `COHORT_SIM_SEED` at length; without it an undisturbed run.
#[test]
fn one_seed() {
    let seed = number("COHORT_SIM_SEED");
    let setting = seed.map_or_else(|| Setting::calm(1, 0), Setting::of);
    if seed.is_some() {
        let _ = writeln!(std::io::stderr(), "{setting:#?}");
    }
    let ran = World::run(setting).unwrap();
    let _ = writeln!(std::io::stderr(), "{}", ran.last.join("\n"));
    assert!(ran.broken.is_none(), "{}", report(seed.unwrap_or_default(), &ran));
}
