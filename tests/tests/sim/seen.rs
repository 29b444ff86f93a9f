//! What the invariants see: everything that crosses a border of the real code.
use crate::desk::describe;
use crate::setting::Point;
use cohort_cluster::controller::{Command, Event, Work};
use cohort_cluster::ledger::{Entry, Past};
use cohort_protocol::messages::node::{HeadToNode, NodeToHead};
use cohort_protocol::messages::rollout::ContinuedLease;
use cohort_protocol::{AttemptId, Epoch, PolicyVersion, TurnPart, WorkerId};
use cohort_rollout::state::LeaseKey;

/// Something that was seen.
#[derive(Debug, Clone)]
pub(crate) enum Seen {
    /// A start of the coordinator has recovered.
    Began { epoch: Epoch, past: Box<Past> },
    /// The coordinator died.
    Crashed(Point),
    /// A stopped coordinator goes on.
    DeskMoved,
    /// The controller heard it.
    Heard(Event),
    /// The controller orders it.
    Ordered(Command),
    /// The ledger has them.
    Durable(Vec<Entry>),
    /// A delivery was kept and acknowledged.
    Kept { work: Work, wire: u64, epoch: Epoch, attempt: AttemptId, scores: bool },
    /// A rollout worker hands in what it has of a group.
    HandedIn { pid: u32, key: LeaseKey, parts: Vec<TurnPart> },
    /// The coordinator keeps some of what was handed in.
    PartsKept { work: Work, attempt: AttemptId },
    /// A lease goes out with what others had of its group.
    Continued(ContinuedLease),
    /// A process holds other weights.
    Took { pid: u32, version: PolicyVersion, digest: u64 },
    /// The learner begins to write a slot.
    SlotWritten { slot: u32 },
    /// A process was started.
    Started { worker: WorkerId, pid: u32 },
    /// A process ended.
    Died { worker: WorkerId, pid: u32, why: String },
    /// A process was stopped, or goes on.
    Stopped { pid: u32, on: bool },
    /// The head node forgets what it knows of a host: it connects anew, or has left.
    HostIsNew { host: u16 },
    /// The head node's agent told a host something.
    HeadTold { wire: u64, message: HeadToNode },
    /// The head node's agent heard a host.
    HeadHeard { wire: u64, message: NodeToHead },
    /// A host counts a chunk as taken; whether it has the learner's bytes.
    ChunkKept { host: u16, version: PolicyVersion, chunk: u32, good: bool },
    /// A trouble begins.
    Blow(String),
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Began { epoch, past } => {
                let open: Vec<u64> = past.open_groups.keys().map(|g| g.0).collect();
                write!(f, "coordinator: epoch {epoch}, {} commits, in flight {open:?}", past.commits.len())
            }
            Self::Heard(Event::Tick | Event::Beat { .. }) => write!(f, "."),
            Self::Heard(event) => write!(f, "heard {event:?}"),
            Self::Ordered(command) => write!(f, "orders {command:?}"),
            Self::Durable(entries) => write!(f, "durable: {}", describe(entries)),
            Self::Kept { work, wire, epoch, attempt, scores } => {
                write!(
                    f,
                    "keeps {} of {work}, attempt {attempt} of epoch {epoch} over {wire}",
                    if *scores { "scores" } else { "trajectories" }
                )
            }
            Self::HandedIn { pid, key, parts } => {
                write!(f, "process {pid} hands in {} of {}/{}", words(parts), key.group, key.attempt)
            }
            Self::PartsKept { work, attempt } => write!(f, "keeps words of {work}, attempt {attempt}"),
            Self::Continued(more) => {
                write!(f, "{}/{} goes on after {}", more.lease.group, more.lease.attempt, words(&more.parts))
            }
            Self::Crashed(point) => write!(f, "the coordinator dies: {point:?}"),
            Self::DeskMoved => write!(f, "the coordinator goes on"),
            Self::Took { pid, version, digest } => write!(f, "process {pid} holds version {version}, {digest:016x}"),
            Self::SlotWritten { slot } => write!(f, "slot {slot} is written"),
            Self::Started { worker, pid } => write!(f, "{worker} starts as process {pid}"),
            Self::Died { worker, pid, why } => write!(f, "{worker}, process {pid}, is gone: {why}"),
            Self::Stopped { pid, on } => write!(f, "process {pid} {}", if *on { "goes on" } else { "is stopped" }),
            Self::HostIsNew { host } => write!(f, "node-{host}: what it had is forgotten"),
            Self::HeadTold { wire, message } => write!(f, "head node to {wire}: {message:?}"),
            Self::HeadHeard { wire, message } => write!(f, "head node from {wire}: {message:?}"),
            Self::ChunkKept { host, version, chunk, good } => {
                write!(f, "node-{host} has chunk {chunk} of version {version}{}", if *good { "" } else { ", wrong" })
            }
            Self::Blow(what) => write!(f, "== {what}"),
        }
    }
}

/// Parts, by sample and turn.
fn words(parts: &[TurnPart]) -> String {
    let one =
        |p: &TurnPart| format!("{}.{} {}+{}{}", p.sample, p.turn, p.start, p.len(), if p.ended.is_some() { "." } else { "" });
    parts.iter().map(one).collect::<Vec<_>>().join(", ")
}
