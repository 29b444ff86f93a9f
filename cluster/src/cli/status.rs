//! `cluster status RUN`: what a run and each of its actors is doing.
use super::{CliError, Exit, json_line};
use crate::agent::keeper::KeeperReport;
use crate::ledger::{LedgerError, RunPaths};
use crate::progress::{FullDisk, RunPhase, RunStatus};
use cohort_actors::wall;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Between two looks of `--watch`.
const AGAIN: Duration = Duration::from_secs(1);
/// Looks at a text that may be half written, before it is called damaged.
const LOOKS: u32 = 3;
/// Between two of them.
const HALF_WRITTEN: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run directory
    run: PathBuf,
    /// Print the status as one line of JSON
    #[arg(long)]
    json: bool,
    /// Print it again every second until the run is over
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    loop {
        let over = once(args, out)?;
        if !args.watch || over {
            return Ok(Exit::Success);
        }
        out.flush()?;
        std::thread::sleep(AGAIN);
        if !args.json {
            writeln!(out)?;
        }
    }
}

/// Prints the status now; gives whether the run is over.
fn once(args: &Args, out: &mut dyn Write) -> Result<bool, CliError> {
    let paths = RunPaths::new(&args.run);
    let keeper = KeeperReport::read(&paths).map_err(|error| CliError::io("read", &paths.keeper_status(), &error))?;
    let Some(status) = read(&paths.status())? else {
        // A host that has only followed so far knows nothing of actors.
        let keeper = keeper.ok_or_else(|| nothing_said(&args.run))?;
        match args.json {
            true => json_line(out, &json!({ "keeper": keeper }))?,
            false => writeln!(out, "{}", keeper.line())?,
        }
        return Ok(false);
    };
    if args.json {
        let mut report = serde_json::to_value(&status)?;
        if let (Some(keeper), Some(fields)) = (&keeper, report.as_object_mut()) {
            fields.insert("keeper".to_owned(), serde_json::to_value(keeper)?);
        }
        json_line(out, &report)?;
        return Ok(status.phase == RunPhase::Finished);
    }
    if let Some(keeper) = keeper {
        writeln!(out, "{}", keeper.line())?;
    }
    writeln!(
        out,
        "step {} of {}  {}  (epoch {}, {} ago)",
        status.step,
        status.steps,
        word(&status.phase)?,
        status.epoch,
        age(&status)
    )?;
    if let Some(FullDisk { path, free_bytes, waited_s, patience_s }) = &status.full_disk {
        let free = free_bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        writeln!(out, "paused: no space left for {} ({free} bytes free), for {waited_s} s of {patience_s} s", path.display())?;
    }
    writeln!(out, "groups: {}", super::summary::groups(&status.groups))?;
    writeln!(out, "{:<12} {:<9} {:>8} {:>9} {:>8}  holds", "actor", "state", "pid", "restarts", "version")?;
    for actor in &status.actors {
        let number = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
        writeln!(
            out,
            "{:<12} {:<9} {:>8} {:>9} {:>8}  {}",
            actor.name,
            word(&actor.state)?,
            number(actor.pid.map(u64::from)),
            actor.restarts,
            number(actor.version),
            actor.lease.as_deref().unwrap_or("-")
        )?;
        if let Some(numerics) = &actor.numerics {
            writeln!(out, "{:<12} corrected sampler: {numerics}", "")?;
        }
    }
    Ok(status.phase == RunPhase::Finished)
}

/// What the coordinator said last.
fn read(path: &Path) -> Result<Option<RunStatus>, CliError> {
    let mut looks = 0;
    loop {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::io("read", path, &error)),
        };
        looks += 1;
        match serde_json::from_slice(&text) {
            Ok(status) => return Ok(Some(status)),
            // On a full disk it is written over the last one, perhaps just now.
            Err(_) if looks < LOOKS => std::thread::sleep(HALF_WRITTEN),
            Err(error) => return Err(CliError::new(Exit::RunDirectory, format!("{} is damaged: {error}", path.display()))),
        }
    }
}

/// There is no run, or one that has only just been started.
fn nothing_said(run: &Path) -> CliError {
    if !RunPaths::new(run).ledger().is_file() {
        return LedgerError::Missing { path: run.to_owned() }.into();
    }
    let why = "the run has not said anything yet: its coordinator is starting, or never came so far; ask again in a moment, or look into";
    CliError::new(Exit::RunDirectory, format!("{}: {why} {}", run.display(), run.join("logs").display()))
}

/// A state's name as it stands in JSON.
fn word<T: serde::Serialize>(state: &T) -> Result<String, CliError> {
    Ok(serde_json::to_value(state)?.as_str().unwrap_or_default().to_owned())
}

fn age(status: &RunStatus) -> String {
    let updated = UNIX_EPOCH + Duration::from_millis(status.updated_ms);
    let seconds = wall::now().duration_since(updated).unwrap_or_default().as_secs();
    format!("{seconds} s")
}
