//! `cluster audit RUN`: the accounts of a run.
use super::{CliError, Exit, json_line};
use crate::ledger::{AuditReport, RunPaths, audit};
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run directory
    run: PathBuf,
    /// Print the report as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let report = audit(&RunPaths::new(&args.run))?;
    if args.json {
        json_line(out, &report)?;
    } else {
        table(&report, out)?;
    }
    Ok(if report.balanced { Exit::Success } else { Exit::Negative })
}

fn table(report: &AuditReport, out: &mut dyn Write) -> Result<(), CliError> {
    let unit = format!("{}s", report.unit);
    writeln!(out, "{unit} generated  {:>8}", report.generated)?;
    writeln!(out, "       consumed  {:>8}", report.consumed)?;
    for (reason, count) in &report.dropped {
        writeln!(out, "        dropped  {count:>8}  {reason}")?;
    }
    writeln!(out, "      in flight  {:>8}", report.in_flight)?;
    for finding in &report.findings {
        writeln!(out, "finding: {finding}")?;
    }
    writeln!(out, "{}", if report.balanced { "balanced" } else { "NOT balanced" })?;
    Ok(())
}
