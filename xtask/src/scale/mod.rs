//! `cargo xtask scale`: what groups, workers and hosts cost the coordinator as their number grows, as tables and a picture.
//!
//! The real controller with 10 to 10,000 workers that are numbers ([`cluster`]), the real tracker of weights with as many
//! hosts ([`hosts`]), the real aggregator and ledger on this disk ([`accounts`]).
mod accounts;
mod cluster;
mod hosts;
mod picture;

use anyhow::{Context, Result, bail};
use picture::{Curve, Panel, draw};
use std::path::{Path, PathBuf};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Measure a debug build all the same: for a look, not for the docs.
    #[arg(long)]
    debug: bool,
    /// Rollout workers, and hosts.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 30, 100, 300, 1000, 3000, 10_000])]
    sizes: Vec<u16>,
    /// Only these, comma separated: controller, hosts, ledger.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The picture; none is drawn where only a part is measured.
    #[arg(long, default_value = "docs/scale.svg")]
    picture: PathBuf,
    /// Where the ledger is written: the disk that is measured.
    #[arg(long, default_value = ".")]
    disk: PathBuf,
    /// Groups through aggregator and ledger.
    #[arg(long, default_value_t = 102_400)]
    groups: u64,
}

/// For which one figure is measured at least, seconds.
const LONG_ENOUGH: f64 = 1.0;
/// Resident memory by which copies of a controller are measured, bytes.
const VISIBLE: u64 = 256 << 20;

pub(crate) fn run(args: &Args) -> Result<()> {
    if cfg!(debug_assertions) && !args.debug {
        bail!("a debug build is not measured: use `cargo run --release -p xtask -- scale`");
    }
    const ALL: [&str; 3] = ["controller", "hosts", "ledger"];
    if let Some(unknown) = args.only.iter().find(|o| !ALL.contains(&o.as_str())) {
        bail!("--only {unknown}: expected some of {}", ALL.join(", "));
    }
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|o| o == name);
    let mut panels = Vec::new();
    if wanted("controller") {
        panels.extend(controller(&args.sizes)?);
    }
    if wanted("hosts") {
        panels.push(spreading(&args.sizes)?);
    }
    if wanted("ledger") {
        ledger(&args.disk, args.groups)?;
    }
    if args.only.is_empty() {
        std::fs::write(&args.picture, draw(&panels)).with_context(|| args.picture.display().to_string())?;
    }
    Ok(())
}

/// The controller's CPU and memory, and its recovery.
fn controller(sizes: &[u16]) -> Result<[Panel; 2]> {
    println!(
        "| workers | mode | groups | events a group | CPU a group | CPU an event | state a worker | lost workers, groups | leased again after | CPU of that a group |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let (mut synchronous, mut asynchronous, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for &workers in sizes {
        for (mode, max_staleness) in [("synchronous", 0), ("asynchronous", 2)] {
            let run = cluster::run(workers, max_staleness, true)?;
            let (cpu, recovery) = median_of(|| run.hear_again());
            let (groups, events) = (run.groups as f64, run.events() as f64);
            let bytes = bytes_of(&run) as f64 / f64::from(workers);
            let loss = run.loss.as_ref().context("nothing was lost")?;
            println!(
                "| {workers} | {mode} | {groups} | {:.1} | {:.1} us | {:.2} us | {bytes:.0} B | {}, {} | {:.1} s | {:.1} us |",
                events / groups,
                cpu / groups * 1e6,
                cpu / events * 1e6,
                loss.workers,
                loss.groups,
                loss.recovery.as_secs_f64(),
                recovery / loss.groups as f64 * 1e6,
            );
            let at = f64::from(run.workers);
            if max_staleness == 0 {
                synchronous.push((at, cpu / groups * 1e6));
                memory.push((at, bytes));
            } else {
                asynchronous.push((at, cpu / groups * 1e6));
            }
        }
    }
    let cpu = vec![
        Curve { name: "synchronous", colour: "#b04a2f", points: synchronous },
        Curve { name: "asynchronous", colour: "#2f6db0", points: asynchronous },
    ];
    let memory = vec![Curve { name: "with its two groups", colour: "#b04a2f", points: memory }];
    Ok([
        Panel { title: "controller: CPU of a group, microseconds", along: "rollout workers", curves: cpu },
        Panel { title: "controller: memory of a worker, bytes", along: "rollout workers", curves: memory },
    ])
}

/// Time to distribute a version, and what the tracker costs.
fn spreading(sizes: &[u16]) -> Result<Panel> {
    println!("| hosts | copies' time to the last host | copies that left the head node | tracker, a chunk |");
    println!("|---|---|---|---|");
    let (mut time, mut tracker) = (Vec::new(), Vec::new());
    for &hosts in sizes {
        let spread = hosts::spread(hosts)?;
        println!("| {} | {:.2} | {:.2} | {:.1} us |", spread.hosts, spread.copies, spread.from_head, spread.tracker_us);
        time.push((f64::from(hosts), spread.copies));
        tracker.push((f64::from(hosts), spread.tracker_us));
    }
    let curves = vec![
        Curve { name: "copies' time", colour: "#b04a2f", points: time },
        Curve { name: "tracker, us a chunk", colour: "#2f6db0", points: tracker },
    ];
    Ok(Panel { title: "a version to all hosts", along: "hosts", curves })
}

fn ledger(disk: &Path, groups: u64) -> Result<()> {
    println!("| groups in a transaction | groups | groups/s | ledger busy |");
    println!("|---|---|---|---|");
    for batch in [32, 128, 512, 1024] {
        let it = accounts::throughput(disk, groups, batch)?;
        println!("| {} | {} | {:.0} | {:.0} % |", it.batch, it.groups, it.per_second, 100.0 * it.ledger);
    }
    Ok(())
}

/// Repeats a measurement until it has been long enough, at least five times; the medians.
fn median_of(measure: impl Fn() -> (f64, f64)) -> (f64, f64) {
    let (mut first, mut second, mut spent) = (Vec::new(), Vec::new(), 0.0);
    while first.len() < 5 || (spent < LONG_ENOUGH && first.len() < 1000) {
        let (a, b) = measure();
        spent += a;
        first.push(a);
        second.push(b);
    }
    (crate::bench::median(first), crate::bench::median(second))
}

/// Bytes of the controller in the middle of a step: by how much resident memory grows with copies of it, once they have
/// filled whatever was free before.
fn bytes_of(run: &cluster::Run) -> u64 {
    let mut copies = Vec::new();
    let mut grow = |by: u64| {
        let (before, begun) = (resident(), copies.len());
        while resident().saturating_sub(before) < by && copies.len() < 200_000 {
            // Looking is dear, copies of a small one are not.
            copies.extend(std::iter::repeat_with(|| run.in_the_middle.clone()).take(1 + 2000 / usize::from(run.workers)));
        }
        resident().saturating_sub(before) / (copies.len() - begun).max(1) as u64
    };
    grow(VISIBLE / 8);
    grow(VISIBLE)
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 4096
}
