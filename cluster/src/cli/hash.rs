//! `cluster hash CHECKPOINT`: what two runs compare.
use super::{CliError, Exit, json_line};
use cohort_learner::checkpoint::{self, CheckpointError};
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint directory, as RUN/checkpoints/step-100; or a run directory, for its newest checkpoint
    checkpoint: PathBuf,
    /// Print as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let dir = resolve(&args.checkpoint)?;
    let hashes = checkpoint::hash(&dir)?;
    if args.json {
        json_line(out, &hashes)?;
    } else {
        let table = serde_json::to_value(&hashes)?;
        for (part, hash) in table.as_object().into_iter().flatten() {
            writeln!(out, "{}  {part}", hash.as_str().unwrap_or_default())?;
        }
    }
    Ok(Exit::Success)
}

/// A checkpoint directory; of a run directory its newest checkpoint.
pub(super) fn resolve(path: &std::path::Path) -> Result<PathBuf, CliError> {
    if path.join(checkpoint::FOLDER).is_dir() {
        return match checkpoint::list(path)?.pop() {
            Some((_, dir)) => Ok(dir),
            None => Err(CliError::new(Exit::RunDirectory, format!("{} has no checkpoint yet", path.display()))),
        };
    }
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    Err(CliError::new(Exit::RunDirectory, format!("there is no checkpoint {}", path.display())))
}

impl From<CheckpointError> for CliError {
    fn from(error: CheckpointError) -> Self {
        let exit = match &error {
            CheckpointError::Io { .. } => Exit::Io,
            CheckpointError::Model(_) | CheckpointError::Foreign { .. } => Exit::Model,
            CheckpointError::Damaged { .. } | CheckpointError::Cursor(_) => Exit::RunDirectory,
        };
        Self::new(exit, error)
    }
}
