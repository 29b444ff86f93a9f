//! `cargo xtask soak`: the tests of killed processes again and again, each time at other moments.
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often.
    #[arg(long, default_value_t = 50)]
    rounds: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let begun = Instant::now();
    for round in 1..=args.rounds {
        let test =
            ["test", "--quiet", "--package", "cohort-tests", "--test", "runs", "--", "--nocapture", "kills", "bits", "ranks"];
        let status = Command::new("cargo").args(test).current_dir(&root).status()?;
        if !status.success() {
            bail!("round {round} of {}: {status}; the moments of its kills are printed above", args.rounds);
        }
        println!("round {round} of {}: every run ended in the bits of the undisturbed one", args.rounds);
    }
    println!("{} rounds, {:.0} s, no difference", args.rounds, begun.elapsed().as_secs_f64());
    Ok(())
}
