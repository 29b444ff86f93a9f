//! `cluster replay RUN`: its steps taken again from the ledger, to the same weights.
use super::open::runtime;
use super::{CliError, Exit, json_line};
use crate::ledger::RunPaths;
use crate::run::replay::{Replay, ReplayError, Replayed};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run directory
    run: PathBuf,
    /// Last step to take again [default: the last committed one]
    #[arg(long, value_name = "STEP", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    /// Print the report as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    run_dir: PathBuf,
    /// Version that the replay began with; 0 is the base model.
    from: u64,
    /// Steps taken again, each to the weights of its commit.
    replayed: usize,
    /// Digest of the weights after the last of them.
    weights_digest: String,
    /// Their SHA-256, where it was committed.
    weights_sha256: Option<String>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let replay = Replay::open(RunPaths::new(&args.run), args.to)?;
    let (version, why) = &replay.begins;
    if let Some(why) = why {
        super::report(&format!("{why}: the replay begins with the checkpoint of step {version}"));
    }
    let mut done = |step: &Replayed| {
        if !args.json {
            // Progress for people; where stderr is closed nobody misses it.
            let _ = writeln!(
                std::io::stderr(),
                "step {:>5}  {} groups  weights {:016x} as committed",
                step.step,
                step.groups,
                step.digest
            );
        }
    };
    let replayed = runtime()?.block_on(replay.run(&mut done))?;
    let last = replayed.last();
    let report = Report {
        run_dir: args.run.clone(),
        from: version.0,
        replayed: replayed.len(),
        weights_digest: last.map(|step| format!("{:016x}", step.digest)).unwrap_or_default(),
        weights_sha256: last.map(|step| step.sha256.clone()).filter(|hash| !hash.is_empty()),
    };
    if args.json {
        json_line(out, &report)?;
    } else {
        writeln!(out, "{} steps from version {} give the weights that were committed", report.replayed, report.from)?;
    }
    Ok(Exit::Success)
}

impl From<ReplayError> for CliError {
    fn from(error: ReplayError) -> Self {
        let exit = match error {
            ReplayError::Ledger(error) => return error.into(),
            ReplayError::Config(error) => return error.into(),
            ReplayError::Wiring(error) => return error.into(),
            ReplayError::Numerics { .. } => Exit::Numerics,
            ReplayError::NoStep { .. } => Exit::Data,
            ReplayError::Trimmed { .. } | ReplayError::Tampered { .. } => Exit::RunDirectory,
            ReplayError::Differs { .. } => Exit::Negative,
            ReplayError::Failed { .. } => Exit::Compute,
        };
        Self::new(exit, error)
    }
}
