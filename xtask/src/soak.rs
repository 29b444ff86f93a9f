//! `cargo xtask soak`: what the gate tries a little, tried at length. Each part by its name, in the order of [`PARTS`].
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these parts (runs, sim), separated by commas; all of them by default.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds of killed processes.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// Seeds of the simulation.
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

/// A part of the soak.
struct Part {
    name: &'static str,
    run: fn(&Args) -> Result<String>,
}

const PARTS: &[Part] = &[Part { name: "sim", run: simulation }, Part { name: "runs", run: killed_runs }];

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(unknown) = args.only.iter().find(|name| PARTS.iter().all(|part| part.name != name.as_str())) {
        let names: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
        bail!("--only {unknown}: there is no such part; there are: {}", names.join(", "));
    }
    for part in PARTS.iter().filter(|part| args.only.is_empty() || args.only.iter().any(|name| name == part.name)) {
        let begun = Instant::now();
        let said = (part.run)(args).with_context(|| part.name)?;
        println!("{}: {said}, {:.0} s", part.name, begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The tests of killed processes again and again, each time at other moments.
fn killed_runs(args: &Args) -> Result<String> {
    for round in 1..=args.rounds {
        test("runs", &["kills", "bits", "ranks"], &[])
            .with_context(|| format!("round {round} of {}; the moments of its kills are printed above", args.rounds))?;
        println!("round {round} of {}: every run ended in the bits of the undisturbed one", args.rounds);
    }
    Ok(format!("{} rounds, no difference", args.rounds))
}

/// Many seeds of the simulation.
fn simulation(args: &Args) -> Result<String> {
    let numbers = [("COHORT_SIM_SEEDS", args.seeds.to_string()), ("COHORT_SIM_FIRST", args.first.to_string())];
    test("sim", &["whatever_goes_wrong"], &numbers)?;
    Ok(format!("{} seeds from {} on, nothing that must hold was broken", args.seeds, args.first))
}

/// Runs tests of the package `cohort-tests`.
fn test(executable: &str, names: &[&str], variables: &[(&str, String)]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new("cargo");
    command.args(["test", "--quiet", "--package", "cohort-tests", "--test", executable, "--", "--nocapture"]).args(names);
    let status = command.envs(variables.iter().map(|(name, value)| (name, value))).current_dir(&root).status()?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}
