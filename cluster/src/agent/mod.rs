//! Node agents. The launching process of a `--processes` run is the agent of the *head node*, parent of the coordinator and
//! of its host's workers (`head`); on every other host `cluster join` runs an agent of the same kind for that host's workers
//! (`join`).
//!
//! | child | failure | action | lost |
//! |---|---|---|---|
//! | coordinator | any | restarted; recovers from the ledger in a new epoch, workers reconnect | nothing committed or accepted |
//! | coordinator | says nothing for [`SILENCE`] | killed, then as above | nothing committed or accepted |
//! | rollout worker | any | restarted; its groups are leased again and come out with the same bits | the groups in its hands |
//! | reward worker | any | restarted; its groups are sent to be graded again | the scores in its hands |
//! | learner | any | restarted; loads the last checkpoint, replays the committed intents; its followers join it again | the step in work |
//! | follower of the learner | any | restarted; takes the lead's state, the step in work is taken again | its part of the step in work |
//! | any | more than 20 failures in 60 s, or an exit that says "not again" | the run (of another host: that host) ends, naming the first cause | nothing committed |
//! | another host | out of reach for 10 s, or it leaves | its workers are given up, or placed elsewhere where a number was asked for | the groups in their hands |
//! | an agent | any | every child leaves within 5 s; `launch --resume` or `cluster join` goes on | nothing committed |
//!
//! Invariants
//! - **N1** an agent decides nothing about training: it starts, watches, restarts, hands over descriptors, carries weights.
//! - **N2** what must outlive a child (port, weights, pipes) is held here (`handover`).
//! - **N3** when the coordinator has ended well, every other child is told to leave, and none survives its agent.
//!
//! Files: `head`, `join` the two agents; `doors` sockets, and where other hosts come in; `watched` the coordinator's process;
//! `membership` a host's place; `whereabouts` the coordinator's; `keeper/` a host that keeps the ledger with others; `invitation` how the hosts of an allocation find each other; `launcher` starts hosts; `children` processes and how they are started; `worker` a child's own side; `news`,
//! `orders` the pipes from and to the coordinator; `control` requests from users; `rotation` new certificates; `autoscale` how many
//! rollout workers there should be (pure); `nodes/` other hosts as the head node sees
//! them; `weights/` between hosts.
mod autoscale;
mod children;
pub(crate) mod control;
mod doors;
mod handover;
mod head;
mod invitation;
mod join;
mod join_error;
pub(crate) mod keeper;
mod launcher;
mod meeting;
mod membership;
mod news;
pub mod nodes;
pub(crate) mod orders;
mod rotation;
mod watched;
pub mod weights;
mod whereabouts;
mod worker;

#[cfg(test)]
pub(crate) use children::GRACE_COORDINATOR;
pub(crate) use children::{ChildReport, certificates};
pub use head::run;
pub(crate) use invitation::Invitation;
pub use invitation::Invites;
pub use join::{JoinOptions, default_dir, run as join};
pub use join_error::JoinError;
pub(crate) use launcher::host_name;
pub(crate) use nodes::tokens::Token;
pub use worker::{WorkerOptions, run as run_worker};

use crate::cli::Exit;
use crate::config::Config;
use crate::devices::Assignment;
use crate::ledger::{LedgerError, RunPaths};
use cohort_actors::Escalation;
use cohort_actors::certs::CertError;
use cohort_actors::transport::EndpointError;
use cohort_engine::RingError;
use cohort_protocol::{Role, RunId};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// A coordinator that says nothing for so long (it does four times a second) is killed and started again.
pub const SILENCE: Duration = Duration::from_secs(30);
/// The same for one whose process the system says is stopped: it is not slow.
const SILENCE_STOPPED: Duration = Duration::from_secs(4);
/// For tests: another [`SILENCE`], in milliseconds.
pub const SILENCE_VARIABLE: &str = "COHORT_COORDINATOR_SILENCE_MS";

/// Why a run of processes ended early.
#[derive(Debug, Error)]
pub enum AgentError {
    /// A child failed too often, or said that it cannot run. Stop.
    #[error("the run was given up: {escalation}")]
    GaveUp {
        /// Who, and the first cause.
        escalation: Escalation,
        /// How the launch ends, as the child said.
        exit: Exit,
    },
    /// The certificates of the run cannot be made. Stop.
    #[error(transparent)]
    Certificates(#[from] CertError),
    /// The weight ring cannot be made. Stop.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A port for other hosts cannot be used. Stop.
    #[error("cluster.listen: {0}")]
    Listen(#[from] EndpointError),
    /// No host brought what the run lacks. Stop.
    #[error(
        "no host with {role} workers has joined for {} s (cluster.join_patience_s): start one with `cluster join {head} --roles \
         {role}=1`, or set {} higher, and go on with `cluster launch --resume {}`",
        waited.as_secs(), if *role == Role::Learner { "cluster.learner_here".to_owned() } else { format!("cluster.{role}") }, run.display()
    )]
    Lonely {
        /// What is lacking.
        role: Role,
        /// For how long.
        waited: Duration,
        /// Where hosts join.
        head: String,
        /// The run.
        run: PathBuf,
    },
    /// Somebody ran `cluster stop`.
    #[error("stopped; nothing that was accepted is lost: go on with `cluster launch --resume {}`", run.display())]
    Stopped {
        /// The run.
        run: PathBuf,
    },
    /// The run directory takes nothing more. Stop.
    #[error(transparent)]
    RunDirectory(LedgerError),
    /// The system refused something. Stop.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The coordinator ended well and left no report.
    #[error("the coordinator left no readable report in {}: {why}", path.display())]
    NoReport {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What the agent runs.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The resolved configuration, already written to the run directory.
    pub config: Arc<Config>,
    /// The run.
    pub run: RunId,
    /// Its directory, locked by the caller.
    pub paths: RunPaths,
    /// Folder of this launch's logs.
    pub logs: PathBuf,
    /// Slots of the weight ring.
    pub slots: u32,
    /// Hosts of the same allocation that are to take part.
    pub invites: Option<Invites>,
    /// Which worker of this host computes where.
    pub devices: Assignment,
    /// Socket of this host's keeper, where several hosts keep the ledger.
    pub keeper: Option<String>,
    /// That keeper's number.
    pub keeper_number: u64,
}
