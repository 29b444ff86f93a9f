//! The command line: one file a subcommand, each with its arguments and a `run` that writes to the given output.
//!
//! Invariants
//! - **L1** every `--json` report is one object on one line, the last on stdout; progress and errors go to stderr.
//! - **L2** errors end in a documented code of 1 to 99 ([`Exit`]), never in a panic.

mod audit;
mod certs;
mod chaos;
mod completions;
mod confined;
mod docs;
mod doctor;
mod evaluate;
mod exit;
mod export;
mod generate;
mod graded;
mod hash;
mod init;
mod inspect;
mod join;
mod jsonl;
mod keep;
mod launch;
mod learn;
mod open;
mod overrides;
mod progress;
mod replay;
mod rollouts;
mod sample;
mod sampling;
mod score;
mod status;
mod steer;
mod summary;
mod together;
mod version;
mod worker;

pub use docs::docs;
pub use exit::{CliError, Exit};
pub use generate::token_sha256;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// Train language-model agents by reinforcement learning, as a system of supervised actors.
#[derive(Debug, Parser)]
#[command(name = "cluster", version, max_term_width = 100, propagate_version = true, subcommand_required = true)]
#[command(after_help = "`cluster launch` needs nothing else: it trains a small embedded agent in about a minute.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a policy; without a file, the embedded order desk
    #[command(visible_alias = "train")]
    Launch(launch::Args),
    /// Held-out reward of a checkpoint, or a talk with it
    Evaluate(evaluate::Args),
    /// Complete prompts from a JSONL file
    Generate(generate::Args),
    /// Log-probs of given tokens under a model
    Score(score::Args),
    /// Generate and score groups of training prompts into a file, without a learner
    Sample(sample::Args),
    /// Train on the groups of a file, without rollout workers
    Learn(learn::Args),
    /// Show the groups of a step side by side: turns, tool calls, rewards, advantages
    Rollouts(rollouts::Args),
    /// Write a configuration or a reward plug-in to start from
    Init(init::Args),
    /// Check this machine: what works, what does not, what to do about it
    Doctor(doctor::Args),
    /// What a run and each of its actors is doing
    Status(status::Args),
    /// Take part, with this host's workers, in a run that another host launched
    Join(join::Args),
    /// Keep a run's ledger with other hosts, and run it while this one leads them
    Keep(keep::Args),
    /// Write a token with which other hosts join a run
    Token(steer::TokenArgs),
    /// Who in a run has which certificate and until when; or new ones for all
    Certs(certs::Args),
    /// Change how many workers a running run has
    Scale(steer::ScaleArgs),
    /// Begin no further groups in a running run; what has begun is finished
    Pause(steer::RunArgs),
    /// Begin groups again in a paused run
    Resume(steer::RunArgs),
    /// Let a running run finish what is in hand, save and end; or let one host leave
    Drain(steer::DrainArgs),
    /// End a running run now; it can be resumed
    Stop(steer::RunArgs),
    /// Kill processes of a running run at random, and say what that costs
    Chaos(chaos::Args),
    /// Prove that every group was consumed once, dropped with a reason, or is in flight
    Audit(audit::Args),
    /// Take a run's steps again from its ledger, to the same weights
    Replay(replay::Args),
    /// Hashes of a checkpoint's weights, optimizer, random state and data cursor
    Hash(hash::Args),
    /// Write a model, adapters merged, as a directory that transformers loads
    Export(export::Args),
    /// What a model is: architecture, size, tokenizer, memory
    Inspect(inspect::Args),
    /// Version, build and kernel path
    Version(version::Args),
    /// Write a completion script for a shell
    Completions(completions::Args),
    /// Run one program of a user confined (started by a reward worker)
    #[command(hide = true)]
    Confined(confined::Args),
    /// Run one worker process (started by the node agent)
    #[command(hide = true)]
    Worker(worker::Args),
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let code = std::panic::catch_unwind(|| run(std::env::args_os())).unwrap_or_else(|_| {
        // The panic's own message stands on stderr already.
        report("this is a mistake in cluster itself; please report the lines above");
        Exit::Internal as u8
    });
    ExitCode::from(code)
}

/// Parses arguments and runs the subcommand; clap's own errors (and `--help`) end here too.
fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> u8 {
    let parsed = Cli::command().try_get_matches_from(arguments).and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout, errors to stderr; a closed pipe is no reason to complain.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage as u8 } else { Exit::Success as u8 };
        }
    };
    let mut out = std::io::stdout().lock();
    let result = dispatch(cli.command, &mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            if !error.message.is_empty() {
                report(&error.message);
            }
            error.exit as u8
        }
    }
}

fn dispatch(command: Command, out: &mut dyn Write) -> Result<u8, CliError> {
    let exit = match command {
        Command::Launch(args) => launch::run(args, out),
        Command::Evaluate(args) => evaluate::run(&args, out),
        Command::Generate(args) => generate::run(&args, out),
        Command::Score(args) => score::run(&args, out),
        Command::Sample(args) => sample::run(&args, out),
        Command::Learn(args) => learn::run(&args, out),
        Command::Rollouts(args) => rollouts::run(&args, out),
        Command::Init(args) => init::run(&args, out),
        Command::Doctor(args) => doctor::run(&args, out),
        Command::Status(args) => status::run(&args, out),
        Command::Join(args) => join::run(args, out),
        // Its code is that of the launch, wherever that was.
        Command::Keep(args) => return keep::run(args, out),
        Command::Token(args) => steer::token(&args, out),
        Command::Certs(args) => certs::run(&args, out),
        Command::Scale(args) => steer::scale(&args, out),
        Command::Pause(args) => steer::pause(&args, out),
        Command::Resume(args) => steer::resume(&args, out),
        Command::Drain(args) => steer::drain(&args, out),
        Command::Stop(args) => steer::stop(&args, out),
        Command::Chaos(args) => chaos::run(&args, out),
        Command::Audit(args) => audit::run(&args, out),
        Command::Replay(args) => replay::run(&args, out),
        Command::Hash(args) => hash::run(&args, out),
        Command::Export(args) => export::run(&args, out),
        Command::Inspect(args) => inspect::run(&args, out),
        Command::Version(args) => version::run(&args, out),
        Command::Completions(args) => completions::run(&args, out),
        // Its host reads the program's own code.
        Command::Confined(args) => return Ok(confined::run(&args)),
        // Its agent reads codes of its own.
        Command::Worker(args) => return Ok(worker::run(args)),
    };
    exit.map(|exit| exit as u8)
}

/// An error as the user sees it.
fn report(message: &str) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "error: {message}");
}

/// A report as its one line of JSON (L1).
fn json_line<T: Serialize>(out: &mut dyn Write, report: &T) -> Result<(), CliError> {
    serde_json::to_writer(&mut *out, report)?;
    out.write_all(b"\n")?;
    Ok(())
}

#[cfg(test)]
mod deployed;
#[cfg(test)]
mod tests;
