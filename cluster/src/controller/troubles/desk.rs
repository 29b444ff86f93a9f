//! A controller at a desk of its own: whoever is connected says what the test has them say.
use super::*;

/// A controller whose ledger is at once durable, and whoever is connected to it.
pub(super) struct Desk {
    pub(super) state: ControllerState,
    pub(super) now: Instant,
    pub(super) conns: BTreeMap<WorkerId, ConnId>,
    /// Progress counters that move with each second.
    pub(super) moving: Vec<WorkerId>,
    pub(super) seconds: u64,
    pub(super) next: u64,
}

impl Desk {
    pub(super) fn new(plan: Plan, past: Past) -> Self {
        let state = ControllerState::new(plan, Epoch(1), past);
        Self { state, now: Instant::now(), conns: BTreeMap::new(), moving: Vec::new(), seconds: 0, next: 0 }
    }

    pub(super) fn say(&mut self, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        self.state.on_event(self.now, event, &mut out);
        let records: Vec<RecordId> =
            out.iter().filter_map(|c| if let Command::Record { id, .. } = c { Some(*id) } else { None }).collect();
        for id in records {
            out.extend(self.say(Event::Recorded(id)));
        }
        for command in &out {
            if let Command::Replace { worker, .. } = command {
                self.conns.remove(worker);
            }
        }
        out
    }

    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn join(&mut self, worker: WorkerId) -> Vec<Command> {
        let conn = ConnId(self.fresh());
        self.conns.insert(worker, conn);
        let mut out = self.say(Event::Connected { conn, worker, incarnation: 0, pid: 1 });
        out.extend(self.say(match worker.role {
            Role::Rollout => Event::RolloutReady { conn, version: None, capacity: 4 },
            Role::Reward => Event::RewardReady { conn, capacity: 4 },
            _ => Event::LearnerReady { conn, version: None },
        }));
        out
    }

    pub(super) fn lose(&mut self, worker: WorkerId) -> Vec<Command> {
        let conn = self.conns.remove(&worker).unwrap();
        self.say(Event::Disconnected { conn, why: "killed by signal 9".into() })
    }

    /// A second with beats of everyone.
    pub(super) fn second(&mut self) -> Vec<Command> {
        self.now += SECOND;
        self.seconds += 1;
        let mut out = Vec::new();
        for (worker, conn) in self.conns.clone() {
            let progress = if self.moving.contains(&worker) { self.seconds } else { 0 };
            out.extend(self.say(Event::Beat { conn, progress }));
        }
        out.extend(self.say(Event::Tick));
        out
    }

    pub(super) fn seconds(&mut self, n: u64) -> Vec<Command> {
        (0..n).flat_map(|_| self.second()).collect()
    }

    /// The learner loads the base and publishes it.
    pub(super) fn learner_up(&mut self) -> Vec<Command> {
        self.join(LEARNER);
        let conn = self.conns[&LEARNER];
        let out = self.say(Event::Loaded { conn, epoch: Epoch(1), version: PolicyVersion(0), digest: 7 });
        self.publish(&out)
    }

    pub(super) fn publish(&mut self, commands: &[Command]) -> Vec<Command> {
        let Some(Command::Publish { conn, version, slot }) = commands.iter().find(|c| matches!(c, Command::Publish { .. }))
        else {
            return Vec::new();
        };
        self.say(Event::Published { conn: *conn, epoch: Epoch(1), version: *version, slot: *slot, digest: 7 })
    }

    pub(super) fn swap(&mut self, worker: WorkerId) -> Vec<Command> {
        let conn = self.conns[&worker];
        self.say(Event::RolloutReady { conn, version: Some(PolicyVersion(0)), capacity: 4 })
    }

    /// Every lease among `commands` is filled; the answer holds what follows.
    pub(super) fn generate(&mut self, commands: &[Command]) -> Vec<Command> {
        let mut out = Vec::new();
        for command in commands {
            let Command::Lease { conn, work, attempt, version, samples, .. } = command else { continue };
            let summary = TrajectoriesSummary { digest: "t".into(), samples: *samples, versions: Some((*version, *version)) };
            let delivery = DeliveryId(self.fresh());
            let (conn, work, attempt) = (*conn, *work, *attempt);
            out.extend(self.say(Event::Trajectories { conn, delivery, epoch: Epoch(1), work, attempt, result: Ok(summary) }));
        }
        out
    }

    pub(super) fn score(&mut self, commands: &[Command]) -> Vec<Command> {
        let mut out = Vec::new();
        for command in commands {
            let Command::Score { conn, work, attempt, .. } = command else { continue };
            let summary = ScoresSummary { digest: "s".into(), scores: vec![1.0], parts: Vec::new(), failure: None };
            let delivery = DeliveryId(self.fresh());
            let (conn, work, attempt) = (*conn, *work, *attempt);
            out.extend(self.say(Event::Scores { conn, delivery, epoch: Epoch(1), work, attempt, summary }));
        }
        out
    }
}
