//! The network: wires between a peer (a worker, or the agent of another host) and the head node's host. Control messages
//! come in order, bulk messages in any; a wire that breaks loses what is under way on it; where nothing passes, parcels are
//! sent again until one end has heard nothing for so long that it gives the wire up.
use crate::agenda::Happening;
use crate::world::World;
use cohort_protocol::messages::learner::{CoordinatorToLearner, LearnerToCoordinator};
use cohort_protocol::messages::node::{HeadToNode, NodeToHead};
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator};
use cohort_protocol::messages::rollout::{CoordinatorToRollout, RolloutToCoordinator};
use cohort_protocol::{Epoch, Role, WorkerId};
use std::collections::BTreeMap;
use std::time::Duration;

/// An end that has heard nothing for so long gives its wire up.
const IDLE: Duration = Duration::from_secs(3);
/// Between two looks.
pub(crate) const WATCH: Duration = Duration::from_millis(500);
/// What is lost where nothing passes is sent again after this.
const AGAIN: Duration = Duration::from_millis(300);

/// A connection.
pub(crate) type WireId = u64;

/// To the head node's host, or from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// What is on its way.
#[derive(Debug, Clone)]
pub(crate) struct Parcel {
    pub(crate) message: Message,
    /// Bulk: its number at the sender. Control: `None`.
    pub(crate) bulk: Option<u64>,
    /// Control: its place in the order.
    pub(crate) seq: u64,
}

/// What peers say to each other.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    FromRollout(RolloutToCoordinator),
    FromReward(RewardToCoordinator),
    FromLearner(LearnerToCoordinator),
    FromNode(NodeToHead),
    Welcome(Epoch),
    ToRollout(CoordinatorToRollout),
    ToReward(CoordinatorToReward),
    ToLearner(CoordinatorToLearner),
    ToNode(HeadToNode),
    /// A bulk message was accepted.
    Ack(u64),
}

/// A connection and both its ends.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) peer: WorkerId,
    pub(crate) pid: u32,
    pub(crate) host: u16,
    /// Start of the coordinator; 0 where the other end is the head node's agent.
    pub(crate) start: u32,
    pub(crate) peer_open: bool,
    pub(crate) head_open: bool,
    broken: bool,
    sent: [u64; 2],
    taken: [u64; 2],
    clear: [Duration; 2],
    /// When each end last heard of the other: peer, head.
    heard: [Duration; 2],
}

/// All wires, and where nothing passes.
#[derive(Debug, Default)]
pub(crate) struct Net {
    pub(crate) wires: BTreeMap<WireId, Wire>,
    next: WireId,
    /// Until when nothing passes from a host, and to it.
    blocks: BTreeMap<u16, [Duration; 2]>,
}

impl Net {
    pub(crate) fn open(&mut self, now: Duration, peer: WorkerId, pid: u32, host: u16, start: u32) -> WireId {
        self.next += 1;
        let wire = Wire {
            peer,
            pid,
            host,
            start,
            peer_open: true,
            head_open: true,
            broken: false,
            sent: [0; 2],
            taken: [0; 2],
            clear: [now; 2],
            heard: [now; 2],
        };
        self.wires.insert(self.next, wire);
        self.next
    }

    pub(crate) fn block(&mut self, host: u16, way: Way, until: Duration) {
        let block = self.blocks.entry(host).or_default();
        block[way as usize] = block[way as usize].max(until);
    }

    pub(crate) fn unblock_all(&mut self) {
        self.blocks.clear();
    }

    pub(crate) fn blocked(&self, now: Duration, host: u16, way: Way) -> bool {
        self.blocks.get(&host).is_some_and(|block| block[way as usize] > now)
    }

    /// Whether nothing passes between a host and others in at least one direction.
    pub(crate) fn cut_off(&self, now: Duration, host: u16) -> bool {
        self.blocked(now, host, Way::Up) || self.blocked(now, host, Way::Down)
    }

    /// Loses what is under way; both ends find out in their time.
    pub(crate) fn tear(&mut self, wire: WireId, noticed: Duration) {
        if let Some(wire) = self.wires.get_mut(&wire) {
            wire.broken = true;
            wire.heard = wire.heard.map(|at| at.saturating_sub(noticed));
        }
    }
}

impl World {
    /// Sends a control message.
    pub(crate) fn send(&mut self, wire: WireId, way: Way, message: Message) {
        let delay = self.delay(1, 25);
        let now = self.now;
        let Some(end) = self.net.wires.get_mut(&wire) else { return };
        let seq = end.sent[way as usize];
        end.sent[way as usize] += 1;
        let at = (now + delay).max(end.clear[way as usize]);
        end.clear[way as usize] = at;
        self.agenda.put(at, Happening::Arrive { wire, way, parcel: Parcel { message, bulk: None, seq } });
    }

    /// Sends a bulk message on a stream of its own.
    pub(crate) fn send_bulk(&mut self, wire: WireId, way: Way, message: Message, bulk: u64) {
        // Only workers send again what was not acknowledged; the coordinator asks anew, under another attempt.
        let rates = self.setting.rates;
        let (doubled, late) = if way == Way::Up { (rates.doubled, rates.late) } else { (0, 0) };
        let copies = 1 + u64::from(self.chance.permille(doubled));
        for copy in 0..copies {
            let mut delay = self.delay(2, 120);
            if self.chance.permille(late) {
                delay += self.chance.ms(300, 4000);
            }
            if copy > 0 {
                let longest = if self.chance.permille(700) { 400 } else { 4000 };
                delay += self.chance.ms(10, longest);
            }
            let parcel = Parcel { message: message.clone(), bulk: Some(bulk), seq: 0 };
            self.agenda.put(self.now + delay, Happening::Arrive { wire, way, parcel });
        }
    }

    /// A message's time on the wire.
    pub(crate) fn delay(&mut self, low: u64, high: u64) -> Duration {
        let delay = self.chance.ms(low, high);
        if self.chance.permille(self.setting.rates.slow) { delay * 10 } else { delay }
    }

    pub(crate) fn arrive(&mut self, id: WireId, way: Way, mut parcel: Parcel) {
        let now = self.now;
        let Some(wire) = self.net.wires.get(&id) else { return };
        if wire.broken || !(if way == Way::Up { wire.head_open } else { wire.peer_open }) {
            return;
        }
        let early = parcel.bulk.is_none() && parcel.seq != wire.taken[way as usize];
        if early || self.net.blocked(now, wire.host, way) {
            return self.agenda.put(now + AGAIN, Happening::Arrive { wire: id, way, parcel });
        }
        let (pid, start, peer) = (wire.pid, wire.start, wire.peer);
        let stopped = match way {
            Way::Up => start > 0 && self.desk.stopped,
            Way::Down => self.procs.get(&pid).is_some_and(|p| p.stopped),
        };
        if stopped {
            // Kept by the kernel until the process goes on.
            return self.agenda.put(now + AGAIN, Happening::Arrive { wire: id, way, parcel });
        }
        if parcel.bulk.is_none()
            && let Some(wire) = self.net.wires.get_mut(&id)
        {
            wire.taken[way as usize] += 1;
        }
        match (way, peer.role) {
            (Way::Up, Role::Node) => self.head_hears(id, parcel.message),
            (Way::Up, _) => self.desk_hears(id, parcel.message, parcel.bulk),
            (Way::Down, Role::Node) => self.host_hears(peer.index, pid, id, parcel.message),
            (Way::Down, _) => {
                // A request that is refused is sent again.
                if !self.worker_hears(pid, id, &parcel.message) {
                    parcel.seq = 0;
                    self.agenda.put(now + AGAIN, Happening::Arrive { wire: id, way, parcel });
                }
            }
        }
    }

    /// Every end that has heard nothing for [`IDLE`] gives its wire up.
    pub(crate) fn watch(&mut self) {
        let now = self.now;
        let ids: Vec<WireId> = self.net.wires.keys().copied().collect();
        for id in ids {
            let Some(wire) = self.net.wires.get(&id) else { continue };
            let (pid, host, start) = (wire.pid, wire.host, wire.start);
            let node = wire.peer.role == Role::Node;
            let peer_there = if node { self.hosts.runs(wire.peer.index, pid) } else { self.procs.contains_key(&pid) };
            let peer_moves = peer_there && !self.procs.get(&pid).is_some_and(|p| p.stopped);
            let head_there = start == 0 || self.desk.is(start);
            let head_moves = head_there && (start == 0 || !self.desk.stopped);
            let passes = |way| !self.net.blocked(now, host, way);
            let (up, down) = (passes(Way::Up), passes(Way::Down));
            let Some(wire) = self.net.wires.get_mut(&id) else { continue };
            (wire.peer_open, wire.head_open) = (wire.peer_open && peer_there, wire.head_open && head_there);
            if !wire.broken && wire.head_open && head_moves && down {
                wire.heard[0] = now;
            }
            if !wire.broken && wire.peer_open && peer_moves && up {
                wire.heard[1] = now;
            }
            let late = |at: Duration| now.saturating_sub(at) > IDLE;
            let (peer_late, head_late) = (late(wire.heard[0]), late(wire.heard[1]));
            if wire.peer_open && peer_moves && peer_late {
                self.peer_lost(id);
            }
            if self.net.wires.get(&id).is_some_and(|w| w.head_open) && head_moves && head_late {
                self.head_lost(id);
            }
            if self.net.wires.get(&id).is_some_and(|w| !w.head_open && !w.peer_open) {
                self.net.wires.remove(&id);
            }
        }
        self.agenda.put(now + WATCH, Happening::Watch);
    }

    /// A worker's, or a host's, end is given up: it looks for the other side again.
    pub(crate) fn peer_lost(&mut self, id: WireId) {
        let Some(wire) = self.net.wires.get_mut(&id) else { return };
        wire.peer_open = false;
        let (pid, peer) = (wire.pid, wire.peer);
        if peer.role == Role::Node {
            self.host_lost_its_wire(peer.index, id);
        } else {
            self.worker_lost_its_wire(pid, id);
        }
    }

    /// The head node's end is given up.
    pub(crate) fn head_lost(&mut self, id: WireId) {
        let Some(wire) = self.net.wires.get_mut(&id) else { return };
        wire.head_open = false;
        if wire.peer.role == Role::Node {
            self.head_lost_a_host(id);
        } else {
            self.desk_lost_a_worker(id);
        }
    }
}
