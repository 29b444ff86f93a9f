//! `cluster scale`, `pause`, `resume`, `drain`, `stop` and `token`: what a running run is told from its own host.
use super::{CliError, Exit, json_line};
use crate::agent::control::{self, Place, Request};
use crate::ledger::{LedgerError, RunPaths};
use cohort_protocol::Role;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Workers by role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Counts(pub(super) Vec<(Role, u16)>);

/// `rollout=8,reward=2`.
pub(super) fn counts(text: &str) -> Result<Counts, String> {
    let one = |part: &str| {
        let (name, count) = part.split_once('=').ok_or_else(|| format!("{part:?} is not ROLE=COUNT"))?;
        let role = match name.trim() {
            "rollout" => Role::Rollout,
            "reward" => Role::Reward,
            "learner" => Role::Learner,
            other => return Err(format!("no role {other:?} that can be counted; there are rollout, reward and learner")),
        };
        let count = count.trim().parse().map_err(|_| format!("{count:?} is no number of workers"))?;
        Ok((role, count))
    };
    text.split(',').filter(|part| !part.is_empty()).map(one).collect::<Result<_, _>>().map(Counts)
}

#[derive(Debug, clap::Args)]
pub(super) struct ScaleArgs {
    /// Run directory
    run: PathBuf,
    /// How many workers from now on, all hosts together, as rollout=8 reward=2
    #[arg(required = true, value_name = "ROLE=COUNT", value_parser = counts)]
    counts: Vec<Counts>,
    /// Print what was done as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Run directory
    run: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct DrainArgs {
    /// Run directory
    run: PathBuf,
    /// Let one host leave instead, as node-2
    #[arg(long, value_name = "NODE", value_parser = node)]
    host: Option<u16>,
}

#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// Run directory
    run: PathBuf,
    /// How many hosts may join with it
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long it is good for, as 30m, 12h or 7d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    expires: u64,
}

fn node(text: &str) -> Result<u16, String> {
    let index = text.strip_prefix("node-").and_then(|n| n.parse().ok());
    index.filter(|&n| n > 0).ok_or_else(|| format!("{text:?} is no other host; they are called node-1, node-2, .."))
}

pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no length of time; give it as 90s, 30m, 12h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|&n| n > 0).ok_or_else(wrong)
}

pub(super) fn scale(args: &ScaleArgs, out: &mut dyn Write) -> Result<Exit, CliError> {
    for (role, count) in args.counts.iter().flat_map(|counts| counts.0.iter().copied()) {
        let answer = ask(&args.run, &Request::Scale { role, count })?;
        if args.json {
            json_line(out, &answer)?;
        } else {
            writeln!(out, "{role}: {count} from now on")?;
        }
    }
    Ok(Exit::Success)
}

pub(super) fn pause(args: &RunArgs, out: &mut dyn Write) -> Result<Exit, CliError> {
    ask(&args.run, &Request::Pause)?;
    writeln!(out, "paused: what has begun is finished, nothing else begins; `cluster resume {}` goes on", args.run.display())?;
    Ok(Exit::Success)
}

pub(super) fn resume(args: &RunArgs, out: &mut dyn Write) -> Result<Exit, CliError> {
    ask(&args.run, &Request::Resume)?;
    writeln!(out, "resumed")?;
    Ok(Exit::Success)
}

pub(super) fn drain(args: &DrainArgs, out: &mut dyn Write) -> Result<Exit, CliError> {
    ask(&args.run, &Request::Drain { host: args.host })?;
    match args.host {
        Some(host) => {
            writeln!(out, "node-{host} leaves; its workers are given up, or placed elsewhere where a number was asked for")?
        }
        None => writeln!(
            out,
            "draining: the step in hand is finished and saved; `cluster launch --resume {}` goes on",
            args.run.display()
        )?,
    }
    Ok(Exit::Success)
}

pub(super) fn stop(args: &RunArgs, out: &mut dyn Write) -> Result<Exit, CliError> {
    ask(&args.run, &Request::Stop)?;
    writeln!(out, "stopping; nothing that was accepted is lost: `cluster launch --resume {}` goes on", args.run.display())?;
    Ok(Exit::Success)
}

/// The token's file goes to stdout: it is a secret, and where it is kept is the user's choice.
pub(super) fn token(args: &TokenArgs, out: &mut dyn Write) -> Result<Exit, CliError> {
    let place = place(&args.run)?;
    if place.listen.is_none() {
        let why = "this run keeps to its host: launch it with cluster.listen set, as --set cluster.listen=0.0.0.0:7400";
        return Err(CliError::new(Exit::Usage, why));
    }
    let answer = ask(&args.run, &Request::Token { uses: args.uses, seconds: args.expires })?;
    let text =
        toml::to_string(&answer).map_err(|e| CliError::new(Exit::Internal, format!("the token cannot be written: {e}")))?;
    out.write_all(text.as_bytes())?;
    Ok(Exit::Success)
}

/// A run of processes that is under way.
fn place(run: &Path) -> Result<Place, CliError> {
    let paths = RunPaths::new(run);
    if !paths.ledger().is_file() {
        return Err(LedgerError::Missing { path: run.to_owned() }.into());
    }
    Place::read(&paths).map_err(|_| not_running(run))
}

fn ask(run: &Path, request: &Request) -> Result<Value, CliError> {
    match control::call(&place(run)?, request) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(why)) => Err(CliError::new(Exit::Usage, why)),
        Err(_) => Err(not_running(run)),
    }
}

fn not_running(run: &Path) -> CliError {
    let why = "is not running here, or is one process: such a run is told to stop by Ctrl-C; one that is to be steered is \
               launched with --processes, and spoken to on its head node";
    CliError::new(Exit::RunDirectory, format!("{} {why}", run.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_times_and_hosts_are_read_or_refused_with_their_text() {
        assert_eq!(counts("rollout=8,reward=2").unwrap().0, [(Role::Rollout, 8), (Role::Reward, 2)]);
        for (wrong, named) in [("rollout", "ROLE=COUNT"), ("node=2", "rollout, reward and"), ("rollout=-1", "no number")] {
            assert!(counts(wrong).unwrap_err().contains(named), "{wrong}");
        }
        assert_eq!(["90s", "30m", "12h", "7d"].map(|t| seconds(t).unwrap()), [90, 1800, 43_200, 604_800]);
        for wrong in ["", "s", "0s", "5", "5 m", "9999999999999999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(node("node-2"), Ok(2));
        assert!(node("node-0").is_err() && node("gpu").is_err());
    }

    #[test]
    fn a_folder_without_a_running_run_is_said_to_be_so() {
        let dir = tempfile::tempdir().unwrap();
        let missing = ask(dir.path(), &Request::Pause).unwrap_err();
        assert_eq!(missing.exit, Exit::RunDirectory);
        std::fs::write(dir.path().join("ledger.sqlite"), "").unwrap();
        assert!(ask(dir.path(), &Request::Pause).unwrap_err().message.contains("is not running here"));
    }
}
