//! The coordinator's process: the real controller and the real ledger with what stands between them. It does what
//! `cluster/src/coordinator/actor.rs` does, without tasks and threads: `desk/` hears, `obey` orders, `journal` writes.
mod hears;
mod journal;
mod obey;

use crate::agenda::Happening;
use crate::net::{Message, Way, WireId};
use crate::seen::Seen;
use crate::setting::Point;
use crate::world::World;
use cohort_cluster::controller::{ConnId, ControllerState, DeliveryId, Event, RecordId, Work};
use cohort_cluster::coordinator::partials::Partials;
use cohort_cluster::ledger::{Accepted, Entry, Ledger, RunLock};
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{AttemptId, Epoch, TrajectoryBatch, WorkerId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use journal::describe;

/// Between two looks at the clock.
pub(crate) const TICK: Duration = Duration::from_millis(200);
/// A pause of the coordinator that makes the next look at deadlines meaningless.
const OWN_STALL: Duration = Duration::from_secs(1);

/// The coordinator, over all its starts.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    /// Which start of it.
    pub(crate) start: u32,
    /// SIGSTOP.
    pub(crate) stopped: bool,
    pub(crate) core: Option<Core>,
    seen: Duration,
    /// What its status said last of workers and their processes.
    status: BTreeMap<WorkerId, u32>,
}

/// One start.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) state: ControllerState,
    pub(crate) ledger: Ledger,
    _lock: RunLock,
    pub(crate) conns: BTreeMap<WireId, WorkerId>,
    pub(crate) deliveries: BTreeMap<DeliveryId, Delivery>,
    pub(crate) kept: BTreeMap<Work, Kept>,
    pub(crate) partials: Partials,
    pub(crate) journal: VecDeque<(RecordId, Vec<Entry>)>,
    writing: bool,
    next_delivery: u64,
}

/// A bulk message that waits for its acknowledgement.
#[derive(Debug)]
pub(crate) struct Delivery {
    wire: WireId,
    bulk: u64,
    pub(crate) epoch: Epoch,
    pub(crate) attempt: AttemptId,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Batch(Arc<TrajectoryBatch>, Option<Accepted<TrajectoryBatch>>),
    Reply(Arc<ScoreReply>, Option<Accepted<ScoreReply>>),
}

/// Accepted contents of a group.
#[derive(Debug, Default, Clone)]
pub(crate) struct Kept {
    batch: Option<Arc<TrajectoryBatch>>,
    reply: Option<Arc<ScoreReply>>,
}

impl Desk {
    /// Whether this start is the present one.
    pub(crate) fn is(&self, start: u32) -> bool {
        self.start == start && self.core.is_some()
    }

    /// Whether it answers.
    pub(crate) fn moves(&self) -> bool {
        self.core.is_some() && !self.stopped
    }
}

impl World {
    /// A start of the coordinator: recovers from the ledger in a new epoch.
    pub(crate) fn rise(&mut self) {
        if self.desk.core.is_some() {
            return;
        }
        self.desk.start += 1;
        let lock = match RunLock::take(&self.paths.ledger_lock(), Duration::ZERO) {
            Ok(lock) => lock,
            Err(error) => return self.break_rule("ledger", &format!("a start of the coordinator: {error}")),
        };
        let opened = Ledger::open(&self.paths).and_then(|mut ledger| {
            let epoch = ledger.begin_epoch(0)?;
            let past = ledger.past()?;
            Ok((ledger, epoch, past))
        });
        let (ledger, epoch, past) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.break_rule("ledger", &format!("recovery: {error}")),
        };
        self.count("starts of the coordinator");
        if self.armed.take_if(|(point, _)| *point == Point::Recovering).is_some() {
            drop((ledger, lock));
            self.crashed_at(Point::Recovering);
            return self.agenda.put(self.now + Duration::from_millis(300), Happening::Rise);
        }
        self.see(Seen::Began { epoch, past: Box::new(past.clone()) });
        let core = Core {
            state: ControllerState::new(self.setting.plan.clone(), epoch, past),
            ledger,
            _lock: lock,
            conns: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            kept: BTreeMap::new(),
            partials: Partials::default(),
            journal: VecDeque::new(),
            writing: false,
            next_delivery: 0,
        };
        (self.desk.core, self.desk.stopped, self.desk.seen) = (Some(core), false, self.now);
        self.agenda.put(self.now + TICK, Happening::Tick { start: self.desk.start });
        let known: Vec<(WorkerId, u32)> = self.desk.status.iter().map(|(worker, pid)| (*worker, *pid)).collect();
        if !known.is_empty() {
            self.tell(Event::Known(known));
        }
    }

    /// The coordinator dies; its agent starts another.
    pub(crate) fn crash(&mut self, at: Point) {
        if self.desk.core.take().is_none() {
            return;
        }
        self.desk.stopped = false;
        self.crashed_at(at);
        // One that gives up of itself closes its connections; of one that is killed nothing is heard.
        if self.chance.permille(500) {
            self.say_goodbye();
        }
        let again = self.chance.ms(100, 700);
        self.agenda.put(self.now + again, Happening::Rise);
    }

    fn say_goodbye(&mut self) {
        let start = self.desk.start;
        let heard = |world: &Self, pid: u32, host: u16| {
            world.procs.get(&pid).is_some_and(|p| !p.stopped) && !world.net.cut_off(world.now, host)
        };
        let wires: Vec<WireId> =
            self.net.wires.iter().filter(|(_, w)| w.start == start && heard(self, w.pid, w.host)).map(|(id, _)| *id).collect();
        wires.into_iter().for_each(|wire| self.peer_lost(wire));
    }

    fn crashed_at(&mut self, point: Point) {
        *self.crashes.entry(point).or_default() += 1;
        self.see(Seen::Crashed(point));
    }

    pub(crate) fn tick(&mut self, start: u32) {
        if !self.desk.is(start) {
            return;
        }
        self.agenda.put(self.now + TICK, Happening::Tick { start });
        if self.desk.stopped {
            return;
        }
        let stalled = self.now.saturating_sub(self.desk.seen) > OWN_STALL;
        self.desk.seen = self.now;
        if !stalled {
            self.tell(Event::Tick);
        }
    }

    /// A stopped coordinator goes on: what came meanwhile is read before it looks at the clock.
    pub(crate) fn desk_wakes(&mut self, start: u32) {
        if self.desk.is(start) {
            self.desk.stopped = false;
            self.see(Seen::DeskMoved);
        }
    }

    pub(crate) fn desk_welcomes(&mut self, wire: WireId, worker: WorkerId, incarnation: u32, pid: u32) {
        let Some(core) = &mut self.desk.core else { return };
        core.conns.insert(wire, worker);
        self.desk.status.insert(worker, pid);
        let epoch = core.state.epoch();
        self.send(wire, Way::Down, Message::Welcome(epoch));
        self.tell(Event::Connected { conn: ConnId(wire), worker, incarnation, pid });
    }

    pub(crate) fn desk_lost_a_worker(&mut self, wire: WireId) {
        if let Some(core) = &mut self.desk.core {
            core.conns.remove(&wire);
            self.tell(Event::Disconnected { conn: ConnId(wire), why: "it fell silent".into() });
        }
    }

    /// The controller hears something; what it orders is done.
    pub(crate) fn tell(&mut self, event: Event) {
        let now = self.origin + self.now;
        let Some(core) = &mut self.desk.core else { return };
        let start = self.desk.start;
        let mut commands = Vec::new();
        let foreign = match &event {
            Event::Trajectories { epoch, .. } | Event::Scores { epoch, .. } => *epoch != core.state.epoch(),
            _ => false,
        };
        core.state.on_event(now, event.clone(), &mut commands);
        if foreign {
            self.count("results of another epoch");
        }
        self.see(Seen::Heard(event));
        for command in commands {
            // A crash in the middle of them ends them.
            if self.desk.is(start) {
                self.obey(command);
            }
        }
    }
}
