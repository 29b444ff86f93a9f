//! `cluster certs RUN`: who has which certificate, from when until when; and new ones for all.
use super::{CliError, Exit, json_line, steer};
use crate::agent::control::Request;
use crate::ledger::{LedgerError, RunPaths};
use cohort_actors::certs::{Issued, issued};
use cohort_actors::wall;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run directory
    run: PathBuf,
    /// Have every host and worker of the running run take a new certificate now; no connection is cut
    #[arg(long)]
    rotate: bool,
    /// Print as one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    if args.rotate {
        let answer = steer::ask(&args.run, &Request::Rotate)?;
        if args.json {
            json_line(out, &answer)?;
        } else {
            writeln!(
                out,
                "new certificates for {} places of this host; {} other hosts were told to take theirs",
                answer["here"], answer["hosts"]
            )?;
        }
        return Ok(Exit::Success);
    }
    let paths = RunPaths::new(&args.run);
    if !paths.ledger().is_file() {
        return Err(LedgerError::Missing { path: args.run.clone() }.into());
    }
    let certificates = issued(&crate::agent::certificates(&paths)).map_err(|e| CliError::new(Exit::Io, e.to_string()))?;
    if args.json {
        json_line(out, &json!({ "certificates": certificates }))?;
        return Ok(Exit::Success);
    }
    if certificates.is_empty() {
        writeln!(out, "no certificate was issued: this run is one process")?;
        return Ok(Exit::Success);
    }
    let now = wall::unix_ms() / 1000;
    writeln!(out, "{:<14} {:<20} {:<20} SHA-256", "PLACE", "FROM", "UNTIL")?;
    for certificate in &certificates {
        writeln!(out, "{}", line(certificate, now))?;
    }
    Ok(Exit::Success)
}

fn line(certificate: &Issued, now: u64) -> String {
    let Issued { place, fingerprint, from, until } = certificate;
    let over = if *until < now { "  (over)" } else { "" };
    format!("{:<14} {:<20} {:<20} {fingerprint}{over}", place.to_string(), date(*from), date(*until))
}

fn date(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::{Role, WorkerId};

    #[test]
    fn a_line_names_place_dates_and_fingerprint_and_what_is_over() {
        let place = WorkerId { role: Role::Rollout, index: 3 };
        let issued = Issued { place, fingerprint: "ab".repeat(32), from: 0, until: 86_400 };
        let line = line(&issued, 86_401);
        for part in ["rollout-3", "1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z", "abab", "(over)"] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}
