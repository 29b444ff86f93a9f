//! A run whose processes are killed at random beside one that nobody disturbs: the same steps, the same weights, and how much
//! longer they took.
use super::picture::picture;
use super::{Curve, WINDOW, last_line, launch};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The picture.
    #[arg(long, default_value = "docs/kills.svg")]
    picture: PathBuf,
    /// Steps of each run.
    #[arg(long, default_value_t = 700)]
    steps: u64,
    /// How often a process is killed, as `cluster chaos` takes it.
    #[arg(long, default_value = "1/min")]
    kill: String,
    /// Key of the moments and the choice.
    #[arg(long, default_value_t = 3)]
    seed: u64,
}

/// In which a run makes its first step.
const BEGINS: Duration = Duration::from_secs(120);

pub(super) fn run(all: &super::Args, args: &Args) -> Result<()> {
    let options = ["--workers", "rollout=2"];
    let calm = all.out.join("undisturbed");
    let ended = launch(all, &calm, args.steps, &options).output()?;
    let undisturbed = Curve::of("undisturbed", "#9aa7b4", 4.0, &calm, &ended)?;

    let run = all.out.join("killed");
    let mut launched = launch(all, &run, args.steps, &options).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Err(error) = begun(&run) {
        launched.kill()?;
        return Err(error);
    }
    let chaos = Command::new(&all.program)
        .arg("chaos")
        .arg(&run)
        .args(["--kill", &args.kill, "--calm", "5s", "--seed", &args.seed.to_string(), "--json"])
        .output()?;
    let killed = Curve::of("under kills", "#b04a2f", 1.4, &run, &launched.wait_with_output()?)?;
    ensure!(chaos.status.success(), "chaos: {}", String::from_utf8_lossy(&chaos.stderr));
    let kills = &last_line(&chaos.stdout)?["kills"];
    let weights = |curve: &Curve| curve.report["weights_sha256"].clone();
    ensure!(
        weights(&undisturbed) == weights(&killed),
        "the weights differ: {} and, under kills, {}",
        weights(&undisturbed),
        weights(&killed)
    );

    let curves = [undisturbed, killed];
    std::fs::write(&args.picture, picture(&curves, "steps", |point| point.step))
        .with_context(|| args.picture.display().to_string())?;
    println!("| | wall time of {} steps | reward of the last {WINDOW} | killed |", args.steps);
    println!("|---|---|---|---|");
    let mut seconds = Vec::new();
    for (curve, kills) in curves.iter().zip(["nobody".to_owned(), kills.to_string()]) {
        let last = curve.points.last().context("no step")?;
        println!("| {} | {:.1} s | {:.3} | {kills} |", curve.name, last.seconds, last.reward);
        seconds.push(last.seconds);
    }
    println!("\neffective training time {:.3}, equal weights", seconds[0] / seconds[1]);
    Ok(())
}

/// Waits for the first step, so that `cluster chaos` finds a run.
fn begun(run: &Path) -> Result<()> {
    let since = Instant::now();
    while std::fs::read_to_string(run.join("metrics.jsonl")).map_or(true, |text| text.is_empty()) {
        ensure!(since.elapsed() < BEGINS, "no step of {} within {} s", run.display(), BEGINS.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
