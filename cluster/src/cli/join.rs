//! `cluster join ADDRESS`: this host takes part in a run that another one launched.
use super::steer::{self, Counts};
use super::{CliError, Exit, together};
use crate::agent::{self, JoinError, JoinOptions, Token};
use crate::http::HttpOptions;
use crate::run::sampler::SampleWith;
use cohort_actors::{LinkError, Shutdown, TransportError};
use std::io::{Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the head node listens: its cluster.listen, as gpu-1:7400 [default: MASTER_ADDR and MASTER_PORT]
    #[arg(value_name = "ADDRESS")]
    head: Option<String>,
    /// Token from `cluster token RUN`, - for standard input; needed the first time only
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Workers that this host offers to run, as rollout=4,reward=1,learner=1
    #[arg(long, value_name = "COUNTS", value_parser = steer::counts, default_value = "rollout=1")]
    roles: Counts,
    /// How this host samples where it cannot offer the run's numerics, as dtype=bf16 or engine=native,device=cpu; the run must
    /// admit it (rollout.other_numerics)
    #[arg(long, value_name = "KEY=VALUE,..")]
    sample_with: Option<SampleWith>,
    /// Graphics processors that its workers compute on, one each, as 0,1 or GPU-..; with model.device = "cuda" [default: those that
    /// this process may use]
    #[arg(long, value_name = "DEVICE,..", value_delimiter = ',')]
    devices: Vec<String>,
    /// This host's own folder: its certificate, logs [default: joined-RUN of the token, with -RANK in an allocation]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where health and metrics of this host are served over HTTP, as 127.0.0.1:9400
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// File with the bearer token that /metrics asks for; needed where --http is not a loopback address
    #[arg(long, value_name = "FILE", requires = "http")]
    http_token_file: Option<PathBuf>,
    /// Take no notice of SLURM_* and of RANK, WORLD_SIZE, MASTER_ADDR
    #[arg(long)]
    alone: bool,
}

pub(super) fn run(args: Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    crate::logging::to_stderr(&crate::config::LoggingConfig::default());
    let allocation = together::allocation(args.alone)?;
    for line in allocation.iter().flat_map(|allocation| &allocation.recognised) {
        tracing::info!(target: "cohort::allocation", text = line, "recognised");
    }
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let dir = match (args.dir, &token) {
        (Some(dir), _) => dir,
        (None, Some(token)) => {
            let (run, _) = token.parse().map_err(|why| CliError::new(Exit::Usage, format!("the token: {why}")))?;
            let dir = agent::default_dir(run);
            // The hosts of an allocation often begin in one shared folder.
            allocation.as_ref().map_or(dir.clone(), |a| PathBuf::from(format!("{}-{}", dir.display(), a.rank)))
        }
        (None, None) => {
            let why = "--token-file is needed the first time, --dir afterwards: neither is given";
            return Err(CliError::new(Exit::Usage, why));
        }
    };
    let head = match (args.head, allocation.map(|allocation| allocation.master)) {
        (Some(head), _) => resolve(&head)?,
        (None, Some((Some(name), Some(port)))) => resolve(&format!("{name}:{port}"))?,
        (None, _) => {
            let why = "where is the head node? Give its ADDRESS, as gpu-1:7400; MASTER_ADDR and MASTER_PORT of an allocation do not say it";
            return Err(CliError::new(Exit::Usage, why));
        }
    };
    let host = agent::host_name();
    if args.http.is_some_and(|http| !http.ip().is_loopback()) && args.http_token_file.is_none() {
        return Err(CliError::new(
            Exit::Usage,
            "--http is not a loopback address: name a file with a token by --http-token-file",
        ));
    }
    let http = args.http.map(|address| HttpOptions { address, token_file: args.http_token_file });
    let options =
        JoinOptions { head, token, dir, offers: args.roles.0, sample_with: args.sample_with, devices: args.devices, host, http };
    stay(options, out)
}

/// Joins, and stays until the run is over or a signal comes.
pub(super) fn stay(options: JoinOptions, out: &mut dyn Write) -> Result<Exit, CliError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| CliError::new(Exit::Io, format!("cannot {what}: {e}"))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(failed("start the runtime"))?;
    let outcome = runtime.block_on(async {
        let shutdown = Shutdown::new();
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let asked = shutdown.clone();
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            asked.trigger(name);
        });
        let joined = agent::join(options, shutdown.clone()).await;
        Ok::<_, std::io::Error>(match joined {
            // Whatever it was doing when it was asked to leave.
            Err(JoinError::Link(LinkError::Shutdown { .. })) => Ok(Exit::Drained),
            Ok(()) if shutdown.is_triggered() => Ok(Exit::Drained),
            Ok(()) => Ok(Exit::Success),
            Err(error) => Err(error),
        })
    });
    runtime.shutdown_background();
    let exit = outcome.map_err(failed("watch signals"))??;
    writeln!(out, "left the run")?;
    Ok(exit)
}

fn read_token(path: &Path) -> Result<Token, CliError> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|e| CliError::io("read", path, &e))?;
    toml::from_str(&text).map_err(|e| CliError::new(Exit::Usage, format!("{} is no token: {e}", path.display())))
}

/// The first address that a name has.
pub(super) fn resolve(head: &str) -> Result<SocketAddr, CliError> {
    let usage = |why: String| CliError::new(Exit::Usage, format!("{head:?}: {why}; give the head node as NAME:PORT"));
    let mut found = head.to_socket_addrs().map_err(|e| usage(e.to_string()))?;
    found.next().ok_or_else(|| usage("the name has no address".into()))
}

impl From<JoinError> for CliError {
    fn from(error: JoinError) -> Self {
        let exit = match &error {
            JoinError::NoToken { .. } | JoinError::Token(_) | JoinError::Devices(_) | JoinError::Config(_) => Exit::Usage,
            JoinError::OtherRun { .. } | JoinError::Directory(_) => Exit::RunDirectory,
            JoinError::Link(LinkError::Refused { .. } | LinkError::Lost(TransportError::Certificate { .. })) => Exit::Usage,
            JoinError::GaveUp { exit, .. } => *exit,
            _ => Exit::Io,
        };
        Self::new(exit, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::Role;

    #[test]
    fn an_address_that_is_none_is_refused_with_the_remedy() {
        for wrong in ["gpu-1", "127.0.0.1", "127.0.0.1:x", ""] {
            let error = resolve(wrong).unwrap_err();
            assert!(error.message.contains("NAME:PORT"), "{}", error.message);
        }
        assert_eq!(resolve("127.0.0.1:7400").unwrap(), SocketAddr::from(([127, 0, 0, 1], 7400)));
    }

    #[test]
    fn a_token_file_that_is_none_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "run = 7").unwrap();
        assert!(read_token(file.path()).unwrap_err().message.contains("is no token"));
        assert!(read_token(Path::new("/no/such/token")).is_err());
        let offers = steer::counts("rollout=2").unwrap();
        assert_eq!(offers.0, [(Role::Rollout, 2)]);
    }
}
