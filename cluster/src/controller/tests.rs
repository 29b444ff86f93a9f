//! The controller in a small world of fake workers and an in-memory ledger: seeds decide who dies, what comes late or
//! twice and when the coordinator starts anew. Whatever they decide, the intents are those of the undisturbed run.
use super::*;
use crate::ledger::{Past, PastCheckpoint, PastGroup};
use cohort_protocol::messages::learner::LoadFrom;
use cohort_protocol::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

mod asynchronous;
mod promises;
mod reference;

/// Splitmix64: the world's only source of chance.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.next().is_multiple_of(n)
    }
}

fn hash(parts: &[&str]) -> u64 {
    let digest = blake3::hash(parts.join("|").as_bytes());
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().unwrap())
}

/// What the disk holds; refuses what the real ledger refuses.
#[derive(Default)]
struct Disk {
    past: Past,
    generated: BTreeSet<GroupId>,
    consumed: BTreeMap<GroupId, StepId>,
    dropped: BTreeSet<GroupId>,
    leases: BTreeSet<(GroupId, AttemptId)>,
    /// Of recorded trajectories.
    versions: BTreeMap<GroupId, (PolicyVersion, PolicyVersion)>,
    reasons: BTreeMap<&'static str, u32>,
    cursors: BTreeMap<GroupId, u64>,
    evaluated: BTreeMap<(u64, bool), f64>,
}

#[derive(Default)]
struct FakeWorker {
    conn: Option<ConnId>,
    incarnation: u32,
    version: Option<PolicyVersion>,
    silent: bool,
}

/// What, its digest, and the versions of its tokens.
type Delivered = (Work, String, (PolicyVersion, PolicyVersion));

#[derive(Clone, Copy, Default)]
struct Trouble {
    kill: u64,
    restart: u64,
    doubled: u64,
    score_fails: u64,
    hang: u64,
    /// The first rollout worker delivers so many times more rarely.
    slow: u64,
}

struct World {
    plan: Plan,
    chance: Chance,
    trouble: Trouble,
    now: Instant,
    disk: Disk,
    state: ControllerState,
    workers: BTreeMap<WorkerId, FakeWorker>,
    learner_digest: BTreeMap<u64, u64>,
    queues: BTreeMap<ConnId, VecDeque<Event>>,
    records: VecDeque<(RecordId, Vec<Fact>)>,
    deliveries: BTreeMap<DeliveryId, Delivered>,
    kept: BTreeMap<Work, u32>,
    sent: Vec<(ConnId, Event)>,
    next: u64,
    steps_taken: u64,
    replays: u64,
    answered_again: u64,
    kills: u64,
    outcome: Option<Outcome>,
    leased_to: BTreeSet<WorkerId>,
}

fn plan() -> Plan {
    Plan {
        steps: 5,
        groups_per_step: 4,
        group_size: 2,
        max_staleness: 0,
        rollout_workers: 2,
        shared_engine: false,
        slots: 3,
        evaluation: Some(EvaluationPlan { every: 2, prompts: 3, samples: 2, greedy: true }),
        checkpoint_every: 2,
        replay_at_most: None,
        on_failure: OnFailure::Stop,
        max_failures: 4,
        deadlines: Deadlines::default(),
    }
}

fn id(role: Role, index: u16) -> WorkerId {
    WorkerId { role, index }
}

impl World {
    fn new(plan: Plan, seed: u64, trouble: Trouble, rollouts: u16, rewards: u16) -> Self {
        let mut workers = BTreeMap::new();
        workers.extend((0..rollouts).map(|i| (id(Role::Rollout, i), FakeWorker::default())));
        workers.extend((0..rewards).map(|i| (id(Role::Reward, i), FakeWorker::default())));
        workers.insert(id(Role::Learner, 0), FakeWorker::default());
        let state = ControllerState::new(plan.clone(), Epoch(1), Past::default());
        Self {
            plan,
            chance: Chance(seed),
            trouble,
            now: Instant::now(),
            disk: Disk::default(),
            state,
            workers,
            learner_digest: [(0, hash(&["base"]))].into(),
            queues: BTreeMap::new(),
            records: VecDeque::new(),
            deliveries: BTreeMap::new(),
            kept: BTreeMap::new(),
            sent: Vec::new(),
            next: 1,
            steps_taken: 0,
            replays: 0,
            answered_again: 0,
            kills: 0,
            outcome: None,
            leased_to: BTreeSet::new(),
        }
    }

    fn run(mut self) -> Self {
        for turn in 0..60_000 {
            if self.outcome.is_some() {
                return self;
            }
            self.turn(turn);
        }
        panic!("stuck in {:?} at version {}: {:#?}", self.state.phase(), self.state.version(), self.state.wave);
    }

    fn turn(&mut self, turn: u32) {
        let names: Vec<WorkerId> = self.workers.keys().copied().collect();
        let name = names[self.chance.below(names.len())];
        if self.workers[&name].conn.is_none() {
            return self.connect(name);
        }
        if self.chance.one_in(self.trouble.kill) {
            return self.kill(name);
        }
        if self.chance.one_in(self.trouble.hang) {
            self.workers.get_mut(&name).unwrap().silent = true;
        }
        if self.chance.one_in(self.trouble.restart) {
            return self.restart_coordinator();
        }
        if !self.sent.is_empty() && self.chance.one_in(self.trouble.doubled) {
            self.double();
        }
        match self.chance.below(4) {
            0 => self.finish_a_record(),
            1 if turn.is_multiple_of(5) => self.pass_time(),
            _ => self.deliver(name),
        }
    }

    fn connect(&mut self, name: WorkerId) {
        let conn = ConnId(self.fresh());
        let worker = self.workers.get_mut(&name).unwrap();
        (worker.conn, worker.silent) = (Some(conn), false);
        let (incarnation, version) = (worker.incarnation, worker.version);
        let ready = match name.role {
            Role::Rollout => Event::RolloutReady { conn, version, capacity: 2 },
            Role::Reward => Event::RewardReady { conn, capacity: 3 },
            _ => Event::LearnerReady { conn, version },
        };
        let pid = incarnation + 100;
        self.queues.insert(conn, [Event::Connected { conn, worker: name, incarnation, pid }, ready].into());
    }

    fn kill(&mut self, name: WorkerId) {
        self.kills += 1;
        let worker = self.workers.get_mut(&name).unwrap();
        let conn = worker.conn.take().unwrap();
        *worker = FakeWorker { incarnation: worker.incarnation + 1, ..FakeWorker::default() };
        // What it had sent may still arrive, or not.
        let keep = self.chance.below(3);
        let queue = self.queues.entry(conn).or_default();
        queue.truncate(keep);
        queue.push_back(Event::Disconnected { conn, why: "killed".into() });
    }

    /// All its memory is gone; records on their way to the disk got there, or not. Workers live on.
    fn restart_coordinator(&mut self) {
        let durable = self.chance.below(self.records.len() + 1);
        let records: Vec<_> = self.records.drain(..).take(durable).collect();
        records.into_iter().for_each(|(_, facts)| self.disk.apply(&facts, &self.deliveries));
        self.queues.clear();
        self.deliveries.clear();
        self.sent.clear();
        self.kept.clear();
        self.workers.values_mut().for_each(|w| w.conn = None);
        let epoch = Epoch(self.state.epoch().0 + 1);
        self.state = ControllerState::new(self.plan.clone(), epoch, self.disk.past.clone());
    }

    fn double(&mut self) {
        let at = self.chance.below(self.sent.len());
        let (conn, event) = self.sent[at].clone();
        if let Some(queue) = self.queues.get_mut(&conn) {
            queue.push_back(event);
        }
    }

    fn finish_a_record(&mut self) {
        if let Some((id, facts)) = self.records.pop_front() {
            self.disk.apply(&facts, &self.deliveries);
            self.give(Event::Recorded(id));
        }
    }

    fn pass_time(&mut self) {
        self.now += Duration::from_millis(700);
        let beats: Vec<ConnId> = self.workers.values().filter(|w| !w.silent).filter_map(|w| w.conn).collect();
        let progress = self.fresh();
        beats.into_iter().for_each(|conn| self.give(Event::Beat { conn, progress }));
        self.give(Event::Tick);
    }

    fn deliver(&mut self, name: WorkerId) {
        let Some(conn) = self.workers[&name].conn.filter(|_| !self.workers[&name].silent) else { return };
        // An older connection's leftovers first, sometimes.
        let conn = if self.chance.one_in(3) { *self.queues.keys().next().unwrap_or(&conn) } else { conn };
        let slow = self.trouble.slow > 0 && self.workers[&id(Role::Rollout, 0)].conn == Some(conn);
        let Some(queue) = self.queues.get_mut(&conn) else { return };
        if slow && matches!(queue.front(), Some(Event::Trajectories { .. })) && !self.chance.one_in(self.trouble.slow) {
            return;
        }
        match queue.pop_front() {
            Some(event) => {
                if matches!(event, Event::Trajectories { .. } | Event::Scores { .. }) {
                    self.sent.push((conn, event.clone()));
                }
                self.give(event);
            }
            None if self.workers.values().all(|w| w.conn != Some(conn)) => drop(self.queues.remove(&conn)),
            None => {}
        }
    }

    fn give(&mut self, event: Event) {
        let mut out = Vec::new();
        self.state.on_event(self.now, event, &mut out);
        self.state.members.assert_indexed();
        self.state.wave.iter().for_each(|wave| wave.assert_indexed());
        for command in out {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Record { id, facts } => self.records.push_back((id, facts)),
            Command::Lease { conn, work, attempt, version, samples, .. } => self.generate(conn, work, attempt, version, samples),
            Command::Weights { conn, version, digest, .. } => {
                assert_eq!(digest, self.learner_digest[&version.0]);
                self.answer(
                    conn,
                    |w| w.version = Some(version),
                    Event::RolloutReady { conn, version: Some(version), capacity: 2 },
                );
            }
            Command::Score { conn, work, attempt, .. } => self.score(conn, work, attempt),
            Command::Keep { delivery, work } => {
                self.deliveries.get(&delivery).expect("kept what never came");
                *self.kept.entry(work).or_default() += 1;
            }
            Command::Forget(works) => works.iter().for_each(|w| self.kept.retain(|kept, _| kept != w)),
            Command::Load { conn, from, version } => {
                assert_eq!(from == LoadFrom::Base, version.0 == 0);
                let digest = self.learner_digest[&version.0];
                let epoch = self.state.epoch();
                self.answer(conn, |w| w.version = Some(version), Event::Loaded { conn, epoch, version, digest });
            }
            Command::Step { conn, intent, replay, .. } => self.step(conn, intent, replay),
            Command::Publish { conn, version, slot } => {
                let (digest, epoch) = (self.learner_digest[&version.0], self.state.epoch());
                self.answer(conn, |_| {}, Event::Published { conn, epoch, version, slot, digest });
            }
            Command::Checkpoint { conn, version, cursor } => {
                if !self.plan.is_asynchronous() {
                    assert_eq!(cursor, version.0 * u64::from(self.plan.groups_per_step));
                }
                let (dir, epoch) = (format!("checkpoints/step-{version}"), self.state.epoch());
                let saved = Event::CheckpointSaved { conn, epoch, version, dir, manifest_sha256: "m".into() };
                self.answer(conn, |_| {}, saved);
            }
            Command::Replace { worker, .. } => {
                let w = self.workers.get_mut(&worker).unwrap();
                *w = FakeWorker { incarnation: w.incarnation + 1, ..FakeWorker::default() };
            }
            Command::Finish(outcome) => self.outcome = Some(outcome),
            Command::Meet { .. } => panic!("this learner has no followers"),
            Command::CancelLease { .. } | Command::Discard { .. } | Command::Phase(_) => {}
            Command::Committed(_)
            | Command::Evaluated(_)
            | Command::NoRoom { .. }
            | Command::RoomAgain { .. }
            | Command::Notice(_) => {}
        }
    }

    fn generate(&mut self, conn: ConnId, work: Work, attempt: AttemptId, version: PolicyVersion, samples: u16) {
        let name = self.name_of(conn);
        if let Some(name) = name {
            let has = self.workers[&name].version;
            let follows = self.plan.is_asynchronous() && work.is_training() && has > Some(version);
            assert!(has == Some(version) || follows, "{work} leased to a worker without version {version}: {has:?}");
            if work.is_training() {
                self.leased_to.insert(name);
            }
        }
        if work.is_training() {
            assert!(self.disk.leases.contains(&(work.group, attempt)), "{work}: leased before it was recorded");
        }
        let delivery = DeliveryId(self.fresh());
        let digest = format!("t{:x}", hash(&[&format!("{work:?}"), &version.to_string()]));
        let newest = name.and_then(|name| self.workers[&name].version).unwrap_or(version);
        let versions = (version, newest);
        self.deliveries.insert(delivery, (work, digest.clone(), versions));
        let result = Ok(TrajectoriesSummary { digest, samples, versions: Some(versions) });
        let epoch = self.state.epoch();
        self.answer(conn, |_| {}, Event::Trajectories { conn, delivery, epoch, work, attempt, result });
    }

    fn score(&mut self, conn: ConnId, work: Work, attempt: AttemptId) {
        assert!(
            self.kept.contains_key(&work) || self.disk.past.open_groups.contains_key(&work.group),
            "{work}: nothing to score"
        );
        let delivery = DeliveryId(self.fresh());
        let failure = self.chance.one_in(self.trouble.score_fails).then(|| ("judge: 503".to_owned(), true));
        let samples = match work.purpose {
            LeasePurpose::Eval { greedy: true, .. } => 1,
            _ => 2,
        };
        let summary = ScoresSummary {
            digest: format!("s{:x}", hash(&[&format!("{work:?}")])),
            scores: if failure.is_some() { Vec::new() } else { vec![work.group.0 as f64; samples] },
            parts: vec![("exact".into(), 0.5)],
            failure,
        };
        self.deliveries.insert(delivery, (work, summary.digest.clone(), Default::default()));
        let epoch = self.state.epoch();
        self.answer(conn, |_| {}, Event::Scores { conn, delivery, epoch, work, attempt, summary });
    }

    fn step(&mut self, conn: ConnId, intent: StepIntent, replay: bool) {
        assert_eq!(self.disk.past.intents.get(&intent.step), Some(&intent), "a step without its intent");
        assert_eq!(self.disk.past.commits.contains_key(&intent.step), replay);
        if self.name_of(conn).is_none() {
            return;
        }
        let held = self.workers[&id(Role::Learner, 0)].version;
        let again = held == Some(intent.base.next());
        assert!(again && !replay || held == Some(intent.base), "a step from the wrong base: {held:?}");
        self.answered_again += u64::from(again);
        *(if replay { &mut self.replays } else { &mut self.steps_taken }) += 1;
        let made = intent.base.next();
        let base = self.learner_digest[&intent.base.0].to_string();
        let digest = hash(&[&base, &intent.digests.join(",")]);
        assert_eq!(*self.learner_digest.entry(made.0).or_insert(digest), digest, "the same step twice, differently");
        let commit = StepCommit {
            step: intent.step,
            version: made,
            weights_sha256: String::new(),
            weights_digest: digest,
            metrics: Vec::new(),
        };
        let epoch = self.state.epoch();
        self.answer(conn, |w| w.version = Some(made), Event::Stepped { conn, epoch, commit });
    }

    /// A command reaches its worker, unless that is dead or hung; what it does is its answer.
    fn answer(&mut self, conn: ConnId, effect: impl FnOnce(&mut FakeWorker), event: Event) {
        if let Some(name) = self.name_of(conn).filter(|n| !self.workers[n].silent) {
            effect(self.workers.get_mut(&name).unwrap());
            self.queues.entry(conn).or_default().push_back(event);
        }
    }

    fn name_of(&self, conn: ConnId) -> Option<WorkerId> {
        self.workers.iter().find(|(_, w)| w.conn == Some(conn)).map(|(name, _)| *name)
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Every group generated is consumed once, dropped or in flight, and the steps took them in order.
    fn check_accounts(&self) {
        let disk = &self.disk;
        for group in &disk.generated {
            let places =
                [disk.consumed.contains_key(group), disk.dropped.contains(group), disk.past.open_groups.contains_key(group)];
            assert_eq!(places.iter().filter(|p| **p).count(), 1, "group {group}: {places:?}");
        }
        if self.plan.is_asynchronous() {
            return;
        }
        let order: Vec<GroupId> = disk.past.intents.values().flat_map(|i| i.groups.clone()).collect();
        assert!(order.is_sorted(), "{order:?}");
    }
}

impl Disk {
    fn apply(&mut self, facts: &[Fact], deliveries: &BTreeMap<DeliveryId, Delivered>) {
        let record = |delivery: &DeliveryId, group: &GroupId| {
            let (work, digest, _) = &deliveries[delivery];
            assert_eq!(work.group, *group);
            (digest.clone(), id(Role::Rollout, 0))
        };
        for fact in facts {
            match fact {
                Fact::Opened { group, cursor } => {
                    assert!(self.generated.insert(*group), "group {group} opened twice");
                    self.past.next_group = self.past.next_group.max(group.0 + 1);
                    self.past.next_cursor = self.past.next_cursor.max(cursor + 1);
                    self.cursors.insert(*group, *cursor);
                    let (trajectories, versions, scores) = (None, None, None);
                    let open = PastGroup { cursor: *cursor, attempt: AttemptId(0), trajectories, versions, scores };
                    self.past.open_groups.insert(*group, open);
                }
                Fact::Leased { group, attempt, .. } => {
                    assert!(self.leases.insert((*group, *attempt)), "attempt {attempt} at group {group} twice");
                    self.past.open_groups.get_mut(group).expect("a lease of a closed group").attempt = *attempt;
                }
                Fact::Trajectories { group, delivery } => {
                    let open = self.past.open_groups.get_mut(group).expect("trajectories of a closed group");
                    assert!(open.trajectories.replace(record(delivery, group)).is_none(), "trajectories twice");
                    open.versions = Some(deliveries[delivery].2);
                    self.versions.insert(*group, deliveries[delivery].2);
                }
                Fact::Scores { group, delivery } => {
                    let open = self.past.open_groups.get_mut(group).expect("scores of a closed group");
                    assert!(open.trajectories.is_some());
                    assert!(open.scores.replace(record(delivery, group)).is_none(), "scores twice");
                }
                Fact::Intent(intent) => {
                    assert!(self.past.intents.insert(intent.step, intent.clone()).is_none(), "intent {} twice", intent.step);
                }
                Fact::Commit(commit) => {
                    assert!(self.past.commits.insert(commit.step, commit.clone()).is_none(), "commit {} twice", commit.step);
                    for group in self.past.intents[&commit.step].groups.clone() {
                        assert!(self.consumed.insert(group, commit.step).is_none(), "group {group} consumed twice");
                        self.past.open_groups.remove(&group).expect("consumed, not in flight");
                    }
                }
                Fact::Dropped { group, reason, .. } => {
                    assert!(self.dropped.insert(*group));
                    *self.reasons.entry(reason).or_default() += 1;
                    *self.past.dropped.entry((*reason).to_owned()).or_default() += 1;
                    self.past.open_groups.remove(group).expect("dropped, not in flight");
                }
                Fact::Checkpoint { version, dir, manifest_sha256 } => self.past.checkpoints.push(PastCheckpoint {
                    version: *version,
                    dir: dir.clone(),
                    manifest_sha256: manifest_sha256.clone(),
                }),
                Fact::Evaluation(report) => {
                    assert!(self.evaluated.insert((report.step, report.greedy), report.reward).is_none(), "a round twice");
                    self.past.evaluations.push(report.clone());
                }
            }
        }
    }
}

const CALM: Trouble = Trouble { kill: 0, restart: 0, doubled: 0, score_fails: 0, hang: 0, slow: 0 };
