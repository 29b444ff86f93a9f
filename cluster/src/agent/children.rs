//! Which processes a run has and how each is started; what `agent.json` says of them.
use super::{AgentError, AgentOptions};
use crate::coordinator::DRAIN_LIMIT;
use crate::ledger::RunPaths;
use cohort_actors::certs::RunAuthority;
use cohort_actors::supervision::process::{ProcessSpec, ProcessStatus};
use cohort_actors::{ChildId, Restart};
use cohort_protocol::{Role, WorkerId};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Time to drain, save and write the report before it is killed: what draining may take, and as long again.
pub(super) const GRACE_COORDINATOR: Duration = DRAIN_LIMIT.saturating_add(Duration::from_secs(30));
/// Time a worker has to leave.
const GRACE_WORKER: Duration = Duration::from_secs(3);

/// One process in `agent.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChildReport {
    /// `rollout-0`.
    pub name: String,
    /// Process while it runs.
    pub pid: Option<u32>,
    /// running, stopping, waiting or ended.
    pub phase: String,
    /// Restarts so far.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
}

pub(super) struct Children<'a> {
    pub program: PathBuf,
    pub options: &'a AgentOptions,
    pub authority: &'a RunAuthority,
    pub handover: String,
    pub coordinator: SocketAddr,
}

impl Children<'_> {
    /// Every process of the run, the coordinator first.
    pub(super) fn specs(&self) -> Result<Vec<ProcessSpec>, AgentError> {
        let cluster = &self.options.config.cluster;
        let places = [
            (Role::Coordinator, 1),
            (Role::Learner, cluster.learner.get()),
            (Role::Reward, cluster.reward.get()),
            (Role::Rollout, cluster.rollout.get()),
        ];
        let mut specs = Vec::new();
        for (role, count) in places {
            for index in 0..count {
                specs.push(self.spec(WorkerId { role, index })?);
            }
        }
        Ok(specs)
    }

    fn spec(&self, who: WorkerId) -> Result<ProcessSpec, AgentError> {
        self.authority.issue_files(who)?;
        let coordinates = who.role == Role::Coordinator;
        let args = [
            "worker".into(),
            "--role".into(),
            who.role.to_string(),
            "--index".into(),
            who.index.to_string(),
            "--coordinator".into(),
            self.coordinator.to_string(),
            "--handover".into(),
            self.handover.clone(),
            "--run".into(),
            self.options.run.to_string(),
        ];
        let mut args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        args.extend([OsString::from("--run-dir"), self.options.paths.root().into()]);
        let log = self.options.logs.join(format!("{who}.log"));
        Ok(ProcessSpec {
            id: ChildId::from(who.to_string()),
            restart: Restart::Transient,
            program: self.program.clone(),
            args,
            env: Vec::new(),
            log: Some(log),
            inherit: Vec::new(),
            grace: if coordinates { GRACE_COORDINATOR } else { GRACE_WORKER },
        })
    }
}

/// Where the run's certificates are.
pub(super) fn certificates(paths: &RunPaths) -> PathBuf {
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

pub(super) fn restarts(status: &[ProcessStatus]) -> u64 {
    status.iter().map(|child| u64::from(child.restarts)).sum()
}

/// Writes `agent.json` whole or not at all.
pub(super) fn write_status(paths: &RunPaths, status: &[ProcessStatus]) -> std::io::Result<()> {
    let reports: Vec<ChildReport> = status
        .iter()
        .map(|child| ChildReport {
            name: child.id.to_string(),
            pid: child.pid,
            phase: child.phase.to_owned(),
            restarts: child.restarts,
            last_exit: child.last_exit.as_ref().map(|exit| exit.text.clone()),
        })
        .collect();
    let path = paths.agent();
    let temporary = path.with_extension("json.new");
    let mut file = std::fs::File::create(&temporary)?;
    serde_json::to_writer(&mut file, &reports)?;
    file.write_all(b"\n")?;
    std::fs::rename(&temporary, &path)
}
