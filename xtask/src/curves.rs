//! `cargo xtask curves`: the order desk with one slow rollout worker among three, synchronous and asynchronous; reward against
//! wall time and against samples, as a picture and a table.
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The `cluster` program.
    #[arg(long, default_value = "target/release/cluster")]
    program: PathBuf,
    /// Where the runs are written.
    #[arg(long, default_value = "runs/curves")]
    out: PathBuf,
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

/// Steps of which the reward is a mean.
const WINDOW: usize = 5;
/// Samples of one group at the order desk.
const GROUP: f64 = 8.0;

/// A run's curve and figures.
struct Curve {
    name: &'static str,
    colour: &'static str,
    /// (seconds since the first step's groups were asked for, samples consumed, mean reward)
    points: Vec<(f64, f64, f64)>,
    report: Value,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let curves = [("synchronous", "#b04a2f", 0), ("asynchronous", "#2f6db0", args.max_staleness)]
        .into_iter()
        .map(|(name, colour, max_staleness)| measure(args, name, colour, max_staleness))
        .collect::<Result<Vec<_>>>()?;
    std::fs::write(&args.picture, picture(&curves)).with_context(|| args.picture.display().to_string())?;
    println!(
        "| | wall time of {} steps | reward of the last {WINDOW} | to reward 0.8 | learner idle | rollout idle | stale groups dropped |",
        args.steps
    );
    println!("|---|---|---|---|---|---|---|");
    for curve in &curves {
        let reached = curve.points.iter().find(|p| p.2 >= 0.8);
        let last = curve.points.last().context("no step")?;
        let part = |name: &str| curve.report[name].as_f64().map_or("-".to_owned(), |x| format!("{:.0} %", x * 100.0));
        println!(
            "| {} | {:.0} s | {:.3} | {} | {} | {} | {} |",
            curve.name,
            last.0,
            last.2,
            reached.map_or("not reached".to_owned(), |p| format!("{:.0} s, {:.0} samples", p.0, p.1)),
            part("learner_idle"),
            part("rollout_idle"),
            curve.report["groups"]["dropped"]["stale"].as_u64().unwrap_or(0),
        );
    }
    Ok(())
}

fn measure(args: &Args, name: &'static str, colour: &'static str, max_staleness: u64) -> Result<Curve> {
    let run = args.out.join(name);
    let mut command = Command::new(&args.program);
    command
        .args(["launch", "--json", "--processes", "--workers", "rollout=3", "--threads", "1", "--clean", "--run-dir"])
        .arg(&run);
    command.args(["--steps", &args.steps.to_string(), "--set", "environment.heldout=16"]);
    if max_staleness > 0 {
        command.args(["--set", &format!("training.max_staleness={max_staleness}"), "--set", "training.correction.type=\"tis\""]);
    }
    let output = command.env("COHORT_ROLLOUT_DELAY_MS", format!("0:{}", args.delay_ms)).output()?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(output.stdout.split(|&b| b == b'\n').rfind(|l| !l.is_empty()).context("no report")?)?;
    Ok(Curve { name, colour, points: points(&run)?, report })
}

/// From a run's `metrics.jsonl`.
fn points(run: &Path) -> Result<Vec<(f64, f64, f64)>> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let mut raw = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        let get =
            |name: &str| line[name].as_f64().or_else(|| line["metrics"][name].as_f64()).with_context(|| format!("no {name}"));
        raw.push((get("time/elapsed_s")?, get("groups/consumed")? * GROUP, get("reward")?));
    }
    let mean = |i: usize| {
        let window = &raw[(i + 1).saturating_sub(WINDOW)..=i];
        window.iter().map(|p| p.2).sum::<f64>() / window.len() as f64
    };
    Ok((0..raw.len()).map(|i| (raw[i].0, raw[i].1, mean(i))).collect())
}

/// Two panels: against wall time, against samples.
fn picture(curves: &[Curve]) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 300\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"760\" height=\"300\" fill=\"#fff\"/>\n",
    );
    panel(&mut svg, curves, 50.0, "seconds since launch", |p| p.0);
    panel(&mut svg, curves, 425.0, "samples consumed", |p| p.1);
    for (i, curve) in curves.iter().enumerate() {
        let x = 60.0 + 120.0 * i as f64;
        // Writing into a String cannot fail; the same below.
        let _ = writeln!(svg, "<path d=\"M{x} 18h20\" stroke=\"{}\" stroke-width=\"2\"/>", curve.colour);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"22\">{}</text>", x + 26.0, curve.name);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, curves: &[Curve], left: f64, label: &str, along: impl Fn(&(f64, f64, f64)) -> f64) {
    let (top, width, height) = (40.0, 300.0, 200.0);
    let most = curves.iter().flat_map(|c| c.points.iter().map(&along)).fold(1.0, f64::max);
    let _ = writeln!(svg, "<path d=\"M{left} {top}v{height}h{width}\" fill=\"none\" stroke=\"#888\"/>");
    for tenth in [0.0, 0.5, 1.0] {
        let (x, y) = (left + tenth * width, top + height * (1.0 - tenth));
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{tenth}</text>", left - 6.0, y + 4.0);
        let _ = writeln!(svg, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{:.0}</text>", top + height + 18.0, tenth * most);
    }
    let _ =
        writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", left + width / 2.0, top + height + 38.0);
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\">reward, mean of {WINDOW} steps</text>", top - 6.0);
    for curve in curves {
        let mut path = String::new();
        for (i, point) in curve.points.iter().enumerate() {
            let (x, y) = (left + along(point) / most * width, top + height * (1.0 - point.2.clamp(0.0, 1.0)));
            let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"/>", curve.colour);
    }
}
