//! Which processes a run has and how each is started; what `agent.json` says of them.
use super::AgentError;
use super::nodes::Elsewhere;
use crate::cli::Exit;
use crate::coordinator::DRAIN_LIMIT;
use crate::devices::{Assignment, VISIBLE};
use crate::ledger::place::write_with_spare;
use crate::ledger::{LedgerError, RunPaths};
use crate::run::sampler::SampleWith;
use cohort_actors::certs::RunAuthority;
use cohort_actors::supervision::process::{ProcessSpec, ProcessStatus, exit};
use cohort_actors::{ChildId, Escalation, Restart};
use cohort_protocol::messages::node::ChildState;
use cohort_protocol::{Role, RunId, WorkerId};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time to drain, save and write the report before it is killed: what draining may take, and as long again.
pub(crate) const GRACE_COORDINATOR: Duration = DRAIN_LIMIT.saturating_add(Duration::from_secs(30));
/// Time a worker has to leave.
const GRACE_WORKER: Duration = Duration::from_secs(3);

/// One process in `agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChildReport {
    /// `rollout-0`.
    pub name: String,
    /// Process while it runs.
    pub pid: Option<u32>,
    /// running, stopping, waiting or ended; out of reach, where its host is.
    pub phase: String,
    /// Restarts so far.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
    /// The host it runs on, where that is not the head node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The graphics processor that it sees, where it was given one; of this host's processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// How the processes of a host are started.
pub(super) struct Children {
    pub program: PathBuf,
    pub run: RunId,
    /// The run's directory; on a host that joined, its own.
    pub dir: PathBuf,
    pub logs: PathBuf,
    /// Name of the hand-over socket.
    pub handover: String,
    /// Name of the gate for weights, on a host that joined.
    pub gate: Option<String>,
    /// Name of the keeper's socket, where several hosts keep the ledger.
    pub keeper: Option<String>,
    /// What samplers compute with, where that is not the run's.
    pub sample_with: Option<SampleWith>,
    /// Which worker computes where.
    pub devices: Mutex<Assignment>,
    pub coordinator: SocketAddr,
    /// Makes certificates; where there is none, they are in the directory already.
    pub authority: Option<Arc<RunAuthority>>,
}

impl Children {
    fn devices(&self) -> MutexGuard<'_, Assignment> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker is gone for good: its device is free.
    pub(super) fn gone(&self, who: WorkerId) {
        self.devices().release(who);
    }

    /// The device of a process, by its name.
    pub(super) fn device(&self, name: &str) -> Option<String> {
        self.devices().of(name).map(str::to_owned)
    }

    /// A worker's process.
    pub(super) fn spec(&self, who: WorkerId) -> Result<ProcessSpec, AgentError> {
        if let Some(authority) = &self.authority {
            authority.issue_files(who)?;
        }
        let coordinates = who.role == Role::Coordinator;
        let mut args = vec![
            "worker".to_owned(),
            "--role".into(),
            who.role.to_string(),
            "--index".into(),
            who.index.to_string(),
            "--coordinator".into(),
            self.coordinator.to_string(),
            "--handover".into(),
            self.handover.clone(),
            "--run".into(),
            self.run.to_string(),
        ];
        if let Some(gate) = &self.gate {
            args.extend(["--gate".to_owned(), gate.clone()]);
        }
        if let Some(keeper) = self.keeper.as_ref().filter(|_| coordinates) {
            args.extend(["--keeper".to_owned(), keeper.clone()]);
        }
        if let Some(with) = self.sample_with.filter(|_| who.role == Role::Rollout) {
            args.extend(["--sample-with".to_owned(), with.to_string()]);
        }
        let env: Vec<(OsString, OsString)> =
            self.devices().take(who).map(|device| (VISIBLE.into(), device.into())).into_iter().collect();
        let mut args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        args.extend([OsString::from("--run-dir"), self.dir.clone().into()]);
        Ok(ProcessSpec {
            id: ChildId::from(who.to_string()),
            restart: Restart::Transient,
            program: self.program.clone(),
            args,
            env,
            log: Some(self.logs.join(format!("{who}.log"))),
            inherit: Vec::new(),
            grace: if coordinates { GRACE_COORDINATOR } else { GRACE_WORKER },
        })
    }
}

/// Where the run's certificates are.
pub(crate) fn certificates(paths: &RunPaths) -> PathBuf {
    paths.root().join("certs")
}

pub(super) fn coordinator_id() -> ChildId {
    ChildId::from(WorkerId { role: Role::Coordinator, index: 0 }.to_string())
}

/// The coordinator's process now.
pub(super) fn coordinator_pid(status: &[ProcessStatus]) -> Option<u32> {
    let id = coordinator_id();
    status.iter().find(|child| child.id == id)?.pid
}

/// It ended with exit code 0: the run is over. While draining, it may also have been taken away.
pub(super) fn coordinator_has_left(status: &[ProcessStatus], draining: bool) -> bool {
    let id = coordinator_id();
    match status.iter().find(|child| child.id == id) {
        Some(child) => child.phase == "ended" && child.last_exit.as_ref().is_some_and(|e| e.code == Some(0)),
        None => draining,
    }
}

/// How a command ends whose child cannot be kept alive: as the child said by its exit code.
pub(super) fn final_exit(escalation: &Escalation, status: &[ProcessStatus]) -> Exit {
    let exit = match escalation {
        Escalation::Fatal { child, .. } => {
            let code = status.iter().find(|s| s.id == *child).and_then(|s| s.last_exit.as_ref()?.code);
            code.and_then(exit::final_code).and_then(Exit::from_code)
        }
        Escalation::TooManyRestarts { .. } => None,
    };
    exit.unwrap_or(Exit::WorkerGaveUp)
}

pub(super) fn restarts(status: &[ProcessStatus]) -> u64 {
    status.iter().map(|child| u64::from(child.restarts)).sum()
}

/// A process for `agent.json`, and for the head node.
pub(super) fn state_of(child: &ProcessStatus) -> ChildState {
    ChildState {
        name: child.id.to_string(),
        pid: child.pid,
        phase: child.phase.to_owned(),
        restarts: child.restarts,
        last_exit: child.last_exit.as_ref().map(|exit| exit.text.clone()),
    }
}

/// Writes `agent.json`, over the last one where the disk is full: this host's processes, then those of the others.
pub(super) fn write_status(
    paths: &RunPaths,
    here: &[ProcessStatus],
    elsewhere: &[Elsewhere],
    device: impl Fn(&str) -> Option<String>,
) -> Result<(), LedgerError> {
    let report = |ChildState { name, pid, phase, restarts, last_exit }, host, device| ChildReport {
        name,
        pid,
        phase,
        restarts,
        last_exit,
        host,
        device,
    };
    let own = |child| {
        let state = state_of(child);
        let device = device(&state.name);
        report(state, None, device)
    };
    let mut reports: Vec<ChildReport> = here.iter().map(own).collect();
    for Elsewhere { host, connected, children } in elsewhere {
        reports.extend(children.iter().cloned().map(|mut child| {
            if !connected {
                child.phase = "out of reach".to_owned();
            }
            report(child, Some(host.to_string()), None)
        }));
    }
    let path = paths.agent();
    let text = serde_json::to_vec(&reports).map_err(|e| LedgerError::io("describe the processes for", &path, e.into()))?;
    write_with_spare(&path, &text)
}
