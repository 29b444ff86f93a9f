//! Between a host that joined a run and the keepers of that run, when the host's head node is out of reach: who leads, and where is
//! its head node? The host dials with its own certificate; nothing else passes.
use super::wire_messages;
use bincode::{Decode, Encode};

wire_messages! {
    /// From a host that looks for its head node.
    NodeToKeeper {
        /// Answered by `Leads`; the number comes back with the answer.
        1 => WhoLeads(u64),
    } removed []
}

wire_messages! {
    /// From the keeper that is asked.
    KeeperToNode {
        /// Answer to `WhoLeads`.
        1 => Leads(WhoLeads),
    } removed []
}

/// Who runs the run, as one keeper sees it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct WhoLeads {
    /// The question's number.
    pub id: u64,
    /// Raft's term: an answer of a lower one is older.
    pub term: u64,
    /// The keeper that leads; none: nobody that this one hears of.
    pub keeper: Option<u64>,
    /// `IP:PORT` where its head node takes hosts in, said by the keeper that leads as soon as it is so; an unspecified address is that
    /// keeper's own.
    pub listens: Option<String>,
}
