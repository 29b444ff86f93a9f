//! `cluster keep RUN --as N`: this host keeps the run's ledger with others, and runs the run while it leads them.
use super::{CliError, Exit, json_line};
use crate::agent::keeper::{self, KeepError, KeepOptions, Kept};
use crate::ledger::replica::KeeperError;
use cohort_actors::Shutdown;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run directory of this host: the copy of one that `cluster launch --prepare` made
    run: PathBuf,
    /// Which keeper this host is: its place in cluster.standby.keepers, from 0
    #[arg(long = "as", value_name = "N")]
    number: u64,
    /// Print the report as one line of JSON, the last on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, out: &mut dyn Write) -> Result<u8, CliError> {
    crate::logging::to_stderr(&crate::config::LoggingConfig::default());
    let system = |error: std::io::Error| CliError::new(Exit::Io, format!("cannot start the runtime: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(system)?;
    let options = KeepOptions { run_dir: args.run, number: args.number, json: args.json };
    let kept = runtime.block_on(async {
        let shutdown = Shutdown::new();
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt()).map_err(system)?, signal(SignalKind::terminate()).map_err(system)?);
        let asked = shutdown.clone();
        let watch = tokio::spawn(async move {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            asked.trigger(name);
        });
        let kept = keeper::run(options, shutdown).await;
        watch.abort();
        Ok::<_, CliError>(kept?)
    })?;
    runtime.shutdown_background();
    match kept {
        Kept::Led { code } => Ok(code),
        Kept::Followed { code, reason } if args.json => {
            json_line(out, &json!({ "led": false, "code": code, "reason": reason }))?;
            Ok(code)
        }
        Kept::Followed { code, reason } => {
            writeln!(out, "the run is over: {reason}")?;
            Ok(code)
        }
        Kept::Left => Ok(Exit::Drained as u8),
    }
}

impl From<KeepError> for CliError {
    fn from(error: KeepError) -> Self {
        let exit = match error {
            KeepError::Config(error) => return error.into(),
            KeepError::Ledger(error) | KeepError::Keeper(KeeperError::Ledger(error)) => return error.into(),
            KeepError::NoSuchKeeper { .. } => Exit::Usage,
            KeepError::Keeper(_) | KeepError::Certificates(_) => Exit::RunDirectory,
            KeepError::Listen { .. } | KeepError::System { .. } => Exit::Io,
        };
        Self::new(exit, error)
    }
}
