//! A host that keeps the ledger with others, and runs the run while it leads them (`cluster keep`).
//!
//! ```text
//! keeper 0 ──────── questions, answers ──────── keeper 1        keeper 2
//!    │ leads: its child is `cluster launch --resume`               follow: log and ledger, nothing else
//!    └── agent ── coordinator (writes by the keeper's socket), learner, workers
//! ```
//!
//! Invariants
//! - **KP1** this process decides nothing about training: it keeps the log, and starts and kills one child.
//! - **KP2** the child lives no longer than this host leads in one term; what it writes after that is refused (`ledger::replica`, K2).
//! - **KP3** when the child has ended by itself the run is over for this launch, and every keeper leaves with its exit code.
//!
//! Files: `lines` questions to other keepers, `door` questions from them, `hosts` from hosts that look for the head node; `report` what `cluster status` shows.
mod door;
mod hosts;
mod lines;
mod report;

pub(crate) use report::KeeperReport;

use super::children::certificates;
use crate::config::{ConfigError, Inputs, Resolved};
use crate::ledger::replica::{Keeper, KeeperError, KeeperSetting, Timing, desk};
use crate::ledger::{LedgerError, Reader, RunLock, RunPaths};
use cohort_actors::certs::{CertError, Identity, RunAuthority};
use cohort_actors::transport::reach::Reach;
use cohort_actors::transport::{EndpointError, TransportOptions};
use cohort_actors::{AcceptTerms, Shutdown, parent};
use cohort_protocol::keeping::LedgerCommand;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::version::{PROTOCOL, PROTOCOL_MIN};
use cohort_protocol::{Epoch, Role, RunId};
use door::Door;
use hosts::Led;
use lines::{Lines, Way, place};
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// For the other keepers to hear that the run is over, before this one leaves.
const FAREWELL: Duration = Duration::from_secs(5);
/// For the end of the run to be written.
const CLOSE: Duration = Duration::from_secs(20);
/// Between a child that was killed and the next one.
const AGAIN: Duration = Duration::from_secs(1);
/// Children that may be killed, one after the other, before the run is given up.
const KILLS: u32 = 5;

/// Why a keeper ended before its run did.
#[derive(Debug, Error)]
pub(crate) enum KeepError {
    /// The run's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No keeper of that number.
    #[error("{} has {keepers} keepers (cluster.standby.keepers), numbered from 0: there is no keeper {number}", run.display())]
    NoSuchKeeper {
        /// The run.
        run: PathBuf,
        /// How many there are; 0: the run is not kept by several hosts.
        keepers: usize,
        /// Asked for.
        number: u64,
    },
    /// The run directory, log or ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The keeper.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The run's certificates.
    #[error(transparent)]
    Certificates(#[from] CertError),
    /// Its port.
    #[error("cluster.standby.keepers[{number}]: {source}")]
    Listen {
        /// The keeper.
        number: u64,
        /// Why not.
        source: EndpointError,
    },
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> KeepError {
    move |source| KeepError::System { what, source }
}

/// What is kept, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct KeepOptions {
    /// The run directory of this host.
    pub(crate) run_dir: PathBuf,
    /// This host's number, from 0.
    pub(crate) number: u64,
    /// The child prints its report as JSON.
    pub(crate) json: bool,
}

/// How a keeper ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kept {
    /// The run is over for this launch; its report was printed here.
    Led {
        /// The launch's exit code.
        code: u8,
    },
    /// The run is over for this launch; another keeper led.
    Followed {
        /// The launch's exit code.
        code: u8,
        /// Why.
        reason: String,
    },
    /// This host was told to leave while it did not lead.
    Left,
}

/// Keeps until the run is over for this launch, or `shutdown`.
///
/// # Errors
/// [`KeepError`].
pub(crate) async fn run(options: KeepOptions, shutdown: Shutdown) -> Result<Kept, KeepError> {
    let missing = || LedgerError::Missing { path: options.run_dir.clone() };
    let paths = RunPaths::new(options.run_dir.canonicalize().map_err(|_| missing())?);
    let run = Reader::open(&paths)?.meta()?.run;
    let config = Resolved::load(&Inputs { files: vec![paths.config()], ..Inputs::default() })?.config;
    let addresses = config.cluster.standby.map_or_else(Vec::new, |standby| standby.keepers);
    let number = options.number;
    let Some(own) = usize::try_from(number).ok().and_then(|n| addresses.get(n).copied()) else {
        return Err(KeepError::NoSuchKeeper { run: options.run_dir, keepers: addresses.len(), number });
    };
    let _lock = RunLock::take(&paths.keeper_lock(), Duration::ZERO)?;
    let certs = certificates(&paths);
    RunAuthority::open_or_create(&certs, run)?.issue_files(place(number))?;
    let identity = Arc::new(Identity::load(&certs, run, place(number))?);
    let reach = Reach::new(config.cluster.transport.into(), TransportOptions::default());
    let sockets = reach.bind(own).map_err(system("bind this keeper's address"))?;
    let listener = reach.listen(sockets, &identity).map_err(|source| KeepError::Listen { number, source })?;

    let lines = Lines::new(addresses.len());
    let timing = Timing::default();
    let setting = KeeperSetting { number, keepers: addresses.len() as u64, paths: paths.clone(), timing };
    let keeper = Keeper::start(setting, lines.clone()).await?;
    let mut serving = tokio::task::JoinSet::new();
    let led = Arc::new(Led::new(paths.clone()));
    let door = Door { terms: terms(run), keeper: keeper.clone(), led: led.clone(), certs: certs.clone() };
    serving.spawn(door::serve(Arc::new(listener), door));
    serving.spawn(report::write(keeper.clone(), paths.clone(), number, addresses.clone()));
    let hello = Hello {
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL,
        run,
        worker: place(number),
        pid: std::process::id(),
        incarnation: 0,
        numerics: String::new(),
    };
    let way = Way { reach, identity, hello, certs: certs.clone(), shutdown: Shutdown::new() };
    let _connected = lines.connect(number, &keeper, &way, &addresses);
    let socket = format!("cohort-keeper-{:016x}-{}", run.0, std::process::id());
    let desk = desk::serve(&socket, keeper.clone()).map_err(system("open the keeper's socket"))?;
    tracing::info!(target: "cohort::keeper", number, %own, "keeps");
    let mut host = Host { keeper, paths, number, socket, led, json: options.json, kills: 0 };
    let kept = host.keep(&shutdown).await;
    desk.abort();
    host.keeper.stop().await;
    kept
}

/// Who may ask.
fn terms(run: RunId) -> AcceptTerms {
    const KEEPERS: &[Role] = &[Role::Keeper, Role::Node];
    let deadline = Duration::from_secs(5);
    AcceptTerms { run, epoch: Epoch(0), numerics: String::new(), corrects: false, deadline, roles: KEEPERS }
}

/// What the process holds.
struct Host {
    keeper: Keeper,
    paths: RunPaths,
    number: u64,
    socket: String,
    led: Arc<Led>,
    json: bool,
    kills: u32,
}

impl Host {
    async fn keep(&mut self, shutdown: &Shutdown) -> Result<Kept, KeepError> {
        loop {
            tokio::select! {
                kept = self.closed() => return Ok(kept),
                _ = self.keeper.until(|now| now.leads || !now.sound) => {}
                _ = shutdown.wait() => return Ok(Kept::Left),
            }
            let standing = self.keeper.standing();
            if !standing.sound {
                return Err(KeeperError::Stopped("its log says why".into()).into());
            }
            if standing.leads
                && let Some(kept) = self.lead(standing.term, shutdown).await?
            {
                return Ok(kept);
            }
        }
    }

    /// The run is over, said by who leads now: an end that lies in the log from an earlier launch is none of this one.
    async fn closed(&self) -> Kept {
        let mut closed = self.keeper.closed();
        loop {
            if let Some(closing) = closed.borrow_and_update().clone()
                && closing.term == self.keeper.standing().term
            {
                return Kept::Followed { code: closing.code, reason: closing.reason };
            }
            if closed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs the run while this host leads. `None`: it leads no more, or the child was killed.
    async fn lead(&mut self, term: u64, shutdown: &Shutdown) -> Result<Option<Kept>, KeepError> {
        tracing::info!(target: "cohort::keeper", term, "leads");
        let mut child = self.launch()?;
        self.led.runs_as(child.id());
        let led = self.watch(&mut child, term, shutdown).await;
        self.led.runs_as(None);
        match led? {
            Some(status) => self.ended(status).await,
            None => Ok(None),
        }
    }

    /// Until the child has ended by itself. `None`: this host leads no more, and the child is gone.
    async fn watch(&mut self, child: &mut Child, term: u64, shutdown: &Shutdown) -> Result<Option<ExitStatus>, KeepError> {
        // `wait` would close it, and its end is what tells the child that this process is gone.
        let _lifeline = child.stdin.take();
        let mut asked = false;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.map_err(system("wait for the run"))?,
                _ = self.keeper.until(|now| !now.leads || now.term != term) => {
                    tracing::warn!(target: "cohort::keeper", term, "leads_no_more");
                    child.kill().await.map_err(system("end the run on this host"))?;
                    return Ok(None);
                }
                _ = shutdown.wait(), if !asked => {
                    asked = true;
                    terminate(child);
                }
            }
        };
        let now = self.keeper.standing();
        // Where it leads no more, its end is what comes of that.
        Ok((now.leads && now.term == term).then_some(status))
    }

    fn launch(&self) -> Result<Child, KeepError> {
        let program = std::env::current_exe().map_err(system("find this program"))?;
        let mut command = Command::new(program);
        command.arg("launch").arg("--resume").arg(self.paths.root()).args(["--alone", "--keeper-socket", &self.socket]);
        command.args(["--keeper-number", &self.number.to_string()]);
        if self.json {
            command.arg("--json");
        }
        // It leaves when this process does.
        command.env(parent::ENV_PARENT, std::process::id().to_string()).stdin(Stdio::piped()).kill_on_drop(true);
        command.spawn().map_err(system("start the run on this host"))
    }

    async fn ended(&mut self, status: ExitStatus) -> Result<Option<Kept>, KeepError> {
        let code = match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(code) => code,
            None => {
                self.kills += 1;
                tracing::warn!(target: "cohort::keeper", %status, "run_was_killed");
                if self.kills < KILLS {
                    tokio::time::sleep(AGAIN).await;
                    return Ok(None);
                }
                crate::cli::Exit::WorkerGaveUp as u8
            }
        };
        let reason = format!("the launch on the host that led ended: {status}");
        let close = LedgerCommand::Close { epoch: self.keeper.epoch()?, code, reason };
        let told = async {
            self.keeper.write(&close, CLOSE).await?;
            // The others hear with the next sign of life that it is written.
            let heard = timeout(FAREWELL, self.keeper.until_all_have_it()).await.unwrap_or(false);
            tokio::time::sleep(Timing::default().beat * 2).await;
            Ok::<_, KeeperError>(heard)
        };
        match told.await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(target: "cohort::keeper", "a keeper has not heard that the run is over"),
            Err(error) => tracing::warn!(target: "cohort::keeper", %error, "keepers_not_told"),
        }
        Ok(Some(Kept::Led { code }))
    }
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        // It may have ended in this moment.
        let _ = kill_process(pid, Signal::TERM);
    }
}
