//! Worker processes: what each decides is the real code's (`RolloutState`, `RewardState`, `LearnerState`); here is its link
//! to the coordinator, its mailbox and what becomes of its process.
mod learner;
mod reward;
mod rollout;
mod voice;

use crate::agenda::Happening;
use crate::net::{Message, Way, WireId};
use crate::seen::Seen;
use crate::world::World;
use cohort_cluster::controller::OnFailure;
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator, ScoreReply};
use cohort_protocol::messages::rollout::{RolloutToCoordinator, WeightsReady};
use cohort_protocol::{Epoch, LeasePurpose, Role, Trajectory, WorkerId};
pub(crate) use learner::{LearnerBrain, base_digest, stepped};
pub(crate) use reward::RewardBrain;
pub(crate) use rollout::{CAPACITY, RolloutBrain};
use std::collections::BTreeMap;
use std::time::Duration;
pub(crate) use voice::{WHOLE, next_token};

/// The head node.
pub(crate) const HEAD: u16 = 0;
/// For the answer to a connection.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A process.
#[derive(Debug)]
pub(crate) struct Proc {
    pub(crate) worker: WorkerId,
    pub(crate) host: u16,
    pub(crate) incarnation: u32,
    /// SIGSTOP.
    pub(crate) stopped: bool,
    /// Beats, and gets nothing done.
    pub(crate) spinning: bool,
    /// Its work takes so many times as long.
    pub(crate) slow: u32,
    pub(crate) brain: Brain,
    wire: Option<WireId>,
    /// The epoch that its link was welcomed to, last of all.
    session: Option<Epoch>,
    tries: u32,
    /// Bulk messages that nobody has accepted, with the epoch that they are meant for.
    outbox: BTreeMap<u64, (Message, Option<Epoch>)>,
    /// When the last thing in its mailbox is read.
    mail: Duration,
}

/// What a process is.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are few of them, and they stay where they are")]
pub(crate) enum Brain {
    Rollout(RolloutBrain),
    Reward(RewardBrain),
    Learner(LearnerBrain),
}

/// What is in a mailbox.
#[derive(Debug, Clone)]
pub(crate) enum Note {
    Connected(Epoch),
    Message(Message),
    Generated(cohort_rollout::state::LeaseKey, Result<Vec<Trajectory>, String>),
    /// A slot of the ring has been read, from the begun reading on.
    Read(WeightsReady, u64),
    /// Of another host: the host's copy is there, with these bytes' digest, or is not.
    Brought(WeightsReady, Result<u64, String>),
    Graded(ScoreReply),
    Done(u64),
}

impl Proc {
    /// Whether a coordinator ever welcomed it.
    pub(crate) fn has_connected(&self) -> bool {
        self.session.is_some()
    }
}

impl World {
    /// An agent starts a process.
    pub(crate) fn spawn(&mut self, worker: WorkerId, host: u16) {
        if self.procs.values().any(|p| p.worker == worker && p.host == host) {
            return;
        }
        self.next_pid += 1;
        let pid = self.next_pid;
        let incarnation = self.incarnations.entry((worker, host)).or_default();
        *incarnation += 1;
        let brain = match worker.role {
            Role::Rollout => Brain::Rollout(RolloutBrain::new()),
            Role::Reward => Brain::Reward(RewardBrain::new()),
            _ => Brain::Learner(LearnerBrain::new()),
        };
        let proc = Proc {
            worker,
            host,
            incarnation: *incarnation,
            stopped: false,
            spinning: false,
            slow: 1,
            brain,
            wire: None,
            session: None,
            tries: 0,
            outbox: BTreeMap::new(),
            mail: self.now,
        };
        self.procs.insert(pid, proc);
        self.see(Seen::Started { worker, pid });
        let (first, beat) = (self.chance.ms(100, 600), self.chance.ms(700, 1000));
        self.agenda.put(self.now + first, Happening::Dial { pid });
        self.agenda.put(self.now + beat, Happening::Beat { pid });
    }

    /// A process dies; its agent starts another where it is still wanted.
    pub(crate) fn kill(&mut self, pid: u32, why: &str) {
        let Some(proc) = self.procs.remove(&pid) else { return };
        self.count("kills");
        self.see(Seen::Died { worker: proc.worker, pid, why: why.to_owned() });
        self.ring.reader_gone(pid);
        let again = self.chance.ms(50, 1500);
        self.agenda.put(self.now + again, Happening::Respawn { worker: proc.worker, host: proc.host });
    }

    /// A worker's try to reach the coordinator.
    pub(crate) fn dial(&mut self, pid: u32) {
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        if proc.wire.is_some() {
            return;
        }
        proc.tries += 1;
        let (worker, host, incarnation, tries) = (proc.worker, proc.host, proc.incarnation, proc.tries);
        let reachable = !proc.stopped && self.desk.moves() && !self.net.cut_off(self.now, host);
        if !reachable {
            let pause = self.chance.ms(50, 100 << tries.min(4));
            let patience = if self.desk.stopped { HANDSHAKE } else { Duration::ZERO };
            return self.agenda.put(self.now + pause + patience, Happening::Dial { pid });
        }
        let start = self.desk.start;
        let wire = self.net.open(self.now, worker, pid, host, start);
        if let Some(proc) = self.procs.get_mut(&pid) {
            (proc.wire, proc.tries) = (Some(wire), 0);
        }
        self.desk_welcomes(wire, worker, incarnation, pid);
    }

    pub(crate) fn worker_lost_its_wire(&mut self, pid: u32, wire: WireId) {
        let Some(proc) = self.procs.get_mut(&pid).filter(|p| p.wire == Some(wire)) else { return };
        proc.wire = None;
        let pause = self.chance.ms(25, 50);
        self.agenda.put(self.now + pause, Happening::Dial { pid });
    }

    /// The link of a worker takes a message. `false`: it refuses it, unacknowledged.
    pub(crate) fn worker_hears(&mut self, pid: u32, wire: WireId, message: &Message) -> bool {
        match message {
            Message::Ack(bulk) => {
                if let Some(proc) = self.procs.get_mut(&pid) {
                    let settled = proc.outbox.remove(bulk);
                    self.settle(pid, settled.map(|(message, _)| message));
                }
            }
            Message::Welcome(epoch) => self.welcomed(pid, wire, *epoch),
            Message::ToReward(CoordinatorToReward::Score(_)) => {
                return self.reward_takes(pid, message.clone());
            }
            _ => self.post(pid, Note::Message(message.clone())),
        }
        true
    }

    fn welcomed(&mut self, pid: u32, wire: WireId, epoch: Epoch) {
        let Some(proc) = self.procs.get_mut(&pid).filter(|p| p.wire == Some(wire)) else { return };
        proc.session = Some(epoch);
        // What nobody has accepted goes out again, in the same epoch; in another it is void.
        let (again, void): (Vec<_>, Vec<_>) =
            std::mem::take(&mut proc.outbox).into_iter().partition(|(_, (_, meant))| *meant == Some(epoch));
        proc.outbox = again.iter().cloned().collect();
        for (_, (message, _)) in void {
            self.settle(pid, Some(message));
        }
        for (bulk, (message, _)) in again {
            self.count("sent again");
            self.send_bulk(wire, Way::Up, message, bulk);
        }
        self.post(pid, Note::Connected(epoch));
    }

    /// Puts something into a mailbox; what is there already is read first.
    pub(crate) fn post(&mut self, pid: u32, note: Note) {
        // An actor reads of a new connection when it comes to it.
        let busy = if matches!(note, Note::Connected(_)) { 800 } else { 60 };
        let delay = if self.chance.permille(busy) { self.chance.ms(10, 1500) } else { self.chance.ms(0, 3) };
        let now = self.now;
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        proc.mail = proc.mail.max(now + delay);
        let at = proc.mail;
        self.agenda.put(at, Happening::Mail { pid, note });
    }

    pub(crate) fn mail(&mut self, pid: u32, note: Note) {
        let Some(proc) = self.procs.get(&pid) else { return };
        if proc.stopped {
            // Read when it goes on; nothing overtakes it, since everything waits.
            return self.agenda.put(self.now + Duration::from_millis(200), Happening::Mail { pid, note });
        }
        match proc.brain {
            Brain::Rollout(_) => self.rollout_mail(pid, note),
            Brain::Reward(_) => self.reward_mail(pid, note),
            Brain::Learner(_) => self.learner_mail(pid, note),
        }
    }

    /// A second has passed in a process.
    pub(crate) fn beat(&mut self, pid: u32) {
        let Some(proc) = self.procs.get(&pid) else { return };
        if !proc.stopped {
            match proc.brain {
                Brain::Rollout(_) => self.rollout_beats(pid),
                Brain::Reward(_) => self.reward_beats(pid),
                Brain::Learner(_) => self.learner_beats(pid),
            }
        }
        self.agenda.put(self.now + Duration::from_secs(1), Happening::Beat { pid });
    }

    /// Says something on the control stream, once; without a connection it is lost.
    pub(crate) fn say(&mut self, pid: u32, message: Message) {
        if let Some(wire) = self.procs.get(&pid).and_then(|p| p.wire) {
            self.send(wire, Way::Up, message);
        }
    }

    /// Sends until it is accepted, within the link's present epoch.
    pub(crate) fn say_bulk(&mut self, pid: u32, message: Message) {
        self.next_bulk += 1;
        let bulk = self.next_bulk;
        let Some(proc) = self.procs.get_mut(&pid) else { return };
        proc.outbox.insert(bulk, (message.clone(), proc.session));
        if let Some(wire) = proc.wire {
            self.send_bulk(wire, Way::Up, message, bulk);
        }
    }

    /// How long a piece of work takes a process.
    pub(crate) fn effort(&mut self, pid: u32, low: u64, high: u64) -> Duration {
        let delay = self.delay(low, high);
        delay * self.procs.get(&pid).map_or(1, |p| p.slow)
    }

    /// Whether a piece of work fails: oftener where its group is given up for it after few tries, never where the run would be.
    fn fails(&mut self, rate: u64, purpose: LeasePurpose) -> bool {
        let rate = match (self.setting.plan.on_failure, purpose) {
            (OnFailure::Drop, LeasePurpose::Train) => 4 * rate,
            (OnFailure::Drop, LeasePurpose::Eval { .. }) => 0,
            (OnFailure::Stop, _) => rate,
        };
        self.chance.permille(rate)
    }

    /// A bulk message was accepted, or is void.
    fn settle(&mut self, pid: u32, message: Option<Message>) {
        match message {
            Some(Message::FromReward(RewardToCoordinator::Scored(reply))) => self.reward_settled(pid, &reply),
            Some(Message::FromRollout(RolloutToCoordinator::Trajectories(batch))) => self.rollout_delivered(pid, &batch),
            _ => {}
        }
    }
}
