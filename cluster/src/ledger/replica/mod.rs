//! A ledger that several hosts keep: its log replicated by openraft, the same database and segments made from it on each.
//!
//! ```text
//! coordinator ── command ──► log of the keeper that leads ──► logs of the others
//!                                     │ on the disks of most keepers: committed
//!                                     ▼
//!                 ledger.sqlite, segments/ of every keeper, by the same code in the same order
//! ```
//!
//! Invariants
//! - **K1** a command is answered only when most keepers have it on their disks and the one that leads has applied it.
//! - **K2** facts carry the epoch of the coordinator that states them; any but the newest is refused by every keeper alike. An
//!   epoch is begun by an entry of the log, so that no two coordinators ever write in one.
//! - **K3** how far the log is applied stands in the ledger, written in the transaction of the rows: after a crash nothing is
//!   applied twice and nothing is left out.
//! - **K4** ledgers of keepers that have applied the same entries are equal to the last link of every chain, places in the segments
//!   included.
//! - **K5** the log is kept whole: there are no snapshots, and a keeper that lost its log does not come back under its number.
//!
//! Files: `command` facts to bytes and back; `log` the log on the disk; `machine` what applies it; `wire` openraft's types and ours;
//! `line` from keeper to keeper; `keeper` one of them; `desk` and `kept` between a keeper and its host's coordinator.
mod command;
pub mod desk;
mod keeper;
mod kept;
mod line;
mod log;
mod machine;
mod wire;

pub use command::record;
pub use keeper::{Keeper, KeeperError, KeeperSetting, Standing, Timing};
pub use kept::KeptLedger;
pub use line::{Line, LineError};
pub use machine::Closing;

use cohort_protocol::keeping::LedgerAnswer;
use openraft::{EmptyNode, TokioRuntime};
use std::fmt;
use std::io::Cursor;

openraft::declare_raft_types!(
    /// What openraft is told of this log.
    pub(crate) Types:
        D = Command,
        R = LedgerAnswer,
        NodeId = u64,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = TokioRuntime,
);

/// An encoded [`cohort_protocol::keeping::LedgerCommand`].
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Command(Vec<u8>);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a command of {} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests;
