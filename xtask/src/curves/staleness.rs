//! One slow rollout worker among three: who waits for it, and who does not.
use super::picture::picture;
use super::{Curve, WINDOW, launch};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The picture.
    #[arg(long, default_value = "docs/asynchronous.svg")]
    picture: PathBuf,
    /// Steps of each run.
    #[arg(long, default_value_t = 60)]
    steps: u64,
    /// What the slow worker waits before it delivers a group, milliseconds.
    #[arg(long, default_value_t = 1500)]
    delay_ms: u64,
    /// `training.max_staleness` of the asynchronous run.
    #[arg(long, default_value_t = 2)]
    max_staleness: u64,
}

pub(super) fn run(all: &super::Args, args: &Args) -> Result<()> {
    let curves = [("synchronous", "#b04a2f", 0), ("asynchronous", "#2f6db0", args.max_staleness)]
        .into_iter()
        .map(|(name, colour, max_staleness)| measure(all, args, name, colour, max_staleness))
        .collect::<Result<Vec<_>>>()?;
    std::fs::write(&args.picture, picture(&curves, "samples consumed", |point| point.samples))
        .with_context(|| args.picture.display().to_string())?;
    println!(
        "| | wall time of {} steps | reward of the last {WINDOW} | to reward 0.8 | learner idle | rollout idle | stale groups dropped |",
        args.steps
    );
    println!("|---|---|---|---|---|---|---|");
    for curve in &curves {
        let reached = curve.points.iter().find(|point| point.reward >= 0.8);
        let last = curve.points.last().context("no step")?;
        let part = |name: &str| curve.report[name].as_f64().map_or("-".to_owned(), |x| format!("{:.0} %", x * 100.0));
        println!(
            "| {} | {:.0} s | {:.3} | {} | {} | {} | {} |",
            curve.name,
            last.seconds,
            last.reward,
            reached.map_or("not reached".to_owned(), |p| format!("{:.0} s, {:.0} samples", p.seconds, p.samples)),
            part("learner_idle"),
            part("rollout_idle"),
            curve.report["groups"]["dropped"]["stale"].as_u64().unwrap_or(0),
        );
    }
    Ok(())
}

fn measure(all: &super::Args, args: &Args, name: &'static str, colour: &'static str, max_staleness: u64) -> Result<Curve> {
    let run = all.out.join(name);
    let mut command = launch(all, &run, args.steps, &["--workers", "rollout=3"]);
    if max_staleness > 0 {
        command.args(["--set", &format!("training.max_staleness={max_staleness}"), "--set", "training.correction.type=\"tis\""]);
    }
    let ended = command.env("COHORT_ROLLOUT_DELAY_MS", format!("0:{}", args.delay_ms)).output()?;
    Curve::of(name, colour, 1.6, &run, &ended)
}
