//! Virtual time: what happens when. Equal times happen in the order in which they were put down.
use crate::hosts::HostNote;
use crate::net::{Parcel, Way, WireId};
use crate::workers::Note;
use cohort_protocol::WorkerId;
use cohort_protocol::messages::reward::ScoreReply;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

/// Something that happens.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    /// A peer's try to connect reaches the other side.
    Dial { pid: u32 },
    /// A parcel reaches the other end of its wire.
    Arrive { wire: WireId, way: Way, parcel: Parcel },
    /// A group's samples are complete.
    Sampled { pid: u32, key: cohort_rollout::state::LeaseKey },
    /// Both ends of every wire look whether they have heard something.
    Watch,
    /// A worker's mailbox.
    Mail { pid: u32, note: Note },
    /// A second has passed in a worker.
    Beat { pid: u32 },
    /// A stopped process goes on.
    Wake { pid: u32 },
    /// An agent starts a worker's process anew.
    Respawn { worker: WorkerId, host: u16 },
    /// A coordinator comes up.
    Rise,
    /// The clock of a start of the coordinator.
    Tick { start: u32 },
    /// The coordinator's journal has written what waited.
    Written { start: u32 },
    /// A start of the coordinator has checked scores on another thread.
    Scored { start: u32, wire: WireId, bulk: u64, reply: Arc<ScoreReply> },
    /// A stopped coordinator goes on.
    DeskWakes { start: u32 },
    /// Something about other hosts.
    Host(HostNote),
    /// Nothing passes between a host and the others until then.
    Cut { host: u16, until: Duration },
    /// The next trouble.
    Blow(usize),
    /// Troubles are over.
    Heal,
}

#[derive(Debug)]
struct Entry {
    at: Duration,
    seq: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// What is to happen.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Reverse<Entry>>,
    seq: u64,
}

impl Agenda {
    pub(crate) fn put(&mut self, at: Duration, what: Happening) {
        self.seq += 1;
        self.heap.push(Reverse(Entry { at, seq: self.seq, what }));
    }

    pub(crate) fn next(&mut self) -> Option<(Duration, Happening)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.what))
    }
}
