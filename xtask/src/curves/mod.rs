//! `cargo xtask curves`: runs of the order desk, their reward against wall time and another measure, as a picture and a table.
//!
//! Files: `staleness` one slow rollout worker among three, synchronous and asynchronous; `kills` processes killed at random, and
//! nobody; `picture` draws.
mod kills;
mod picture;
mod staleness;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    of: Of,
    /// The `cluster` program.
    #[arg(long, global = true, default_value = "target/release/cluster")]
    program: PathBuf,
    /// Where the runs are written.
    #[arg(long, global = true, default_value = "runs/curves")]
    out: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Of {
    /// One slow rollout worker among three, synchronous and asynchronous.
    Staleness(staleness::Args),
    /// Processes killed at random, and a run that nobody disturbs.
    Kills(kills::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.of {
        Of::Staleness(own) => staleness::run(args, own),
        Of::Kills(own) => kills::run(args, own),
    }
}

/// Steps of which the reward is a mean.
const WINDOW: usize = 5;
/// Samples of one group at the order desk.
const GROUP: f64 = 8.0;

/// A run's curve and figures.
struct Curve {
    name: &'static str,
    colour: &'static str,
    width: f64,
    points: Vec<Point>,
    report: Value,
}

/// After one step.
#[derive(Debug, Clone, Copy)]
struct Point {
    /// Since the launch.
    seconds: f64,
    step: f64,
    /// Samples consumed.
    samples: f64,
    /// Mean of the last steps' rewards.
    reward: f64,
}

impl Curve {
    /// Of a run that has ended well.
    fn of(name: &'static str, colour: &'static str, width: f64, run: &Path, ended: &Output) -> Result<Self> {
        ensure!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stderr));
        Ok(Self { name, colour, width, points: points(run)?, report: last_line(&ended.stdout)? })
    }
}

/// The order desk by processes, into a folder.
fn launch(args: &Args, run: &Path, steps: u64, options: &[&str]) -> Command {
    let mut command = Command::new(&args.program);
    command.args(["launch", "--json", "--processes", "--threads", "1", "--clean", "--run-dir"]).arg(run);
    command.args(["--steps", &steps.to_string(), "--set", "environment.heldout=16"]).args(options);
    command
}

/// The report of a command with `--json`.
fn last_line(stdout: &[u8]) -> Result<Value> {
    let line = stdout.split(|&b| b == b'\n').rfind(|line| !line.is_empty()).context("no report")?;
    Ok(serde_json::from_slice(line)?)
}

/// From a run's `metrics.jsonl`.
fn points(run: &Path) -> Result<Vec<Point>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let mut points: Vec<Point> = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        let get =
            |name: &str| line[name].as_f64().or_else(|| line["metrics"][name].as_f64()).with_context(|| format!("no {name}"));
        let (seconds, samples) = (get("time/elapsed_s")?, get("groups/consumed")? * GROUP);
        points.push(Point { seconds, step: points.len() as f64 + 1.0, samples, reward: get("reward")? });
    }
    let rewards: Vec<f64> = points.iter().map(|point| point.reward).collect();
    for (i, point) in points.iter_mut().enumerate() {
        let window = &rewards[(i + 1).saturating_sub(WINDOW)..=i];
        point.reward = window.iter().sum::<f64>() / window.len() as f64;
    }
    Ok(points)
}
