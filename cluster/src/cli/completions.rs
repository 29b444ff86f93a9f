//! `cluster completions SHELL`.
use super::{Cli, CliError, Exit};
use clap::CommandFactory;
use std::io::Write;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cluster", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Success)
}
