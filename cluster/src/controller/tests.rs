//! The controller in a small world of fake workers and an in-memory ledger: seeds decide who dies, what comes late or
//! twice and when the coordinator starts anew. Whatever they decide, the intents are those of the undisturbed run.
use super::*;
use crate::ledger::{Past, PastCheckpoint, PastGroup};
use cohort_protocol::messages::learner::LoadFrom;
use cohort_protocol::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

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
    evaluated: BTreeMap<(u64, bool), f64>,
}

#[derive(Default)]
struct FakeWorker {
    conn: Option<ConnId>,
    incarnation: u32,
    version: Option<PolicyVersion>,
    silent: bool,
}

#[derive(Clone, Copy, Default)]
struct Trouble {
    kill: u64,
    restart: u64,
    doubled: u64,
    score_fails: u64,
    hang: u64,
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
    deliveries: BTreeMap<DeliveryId, (Work, String)>,
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
        let Some(queue) = self.queues.get_mut(&conn) else { return };
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
                assert_eq!(cursor, version.0 * u64::from(self.plan.groups_per_step));
                let (dir, epoch) = (format!("checkpoints/step-{version}"), self.state.epoch());
                let saved = Event::CheckpointSaved { conn, epoch, version, dir, manifest_sha256: "m".into() };
                self.answer(conn, |_| {}, saved);
            }
            Command::Replace { worker, .. } => {
                let w = self.workers.get_mut(&worker).unwrap();
                *w = FakeWorker { incarnation: w.incarnation + 1, ..FakeWorker::default() };
            }
            Command::Finish(outcome) => self.outcome = Some(outcome),
            Command::CancelLease { .. } | Command::Discard { .. } | Command::Phase(_) => {}
            Command::Committed(_) | Command::Evaluated(_) | Command::Notice(_) => {}
        }
    }

    fn generate(&mut self, conn: ConnId, work: Work, attempt: AttemptId, version: PolicyVersion, samples: u16) {
        let name = self.name_of(conn);
        if let Some(name) = name {
            assert_eq!(self.workers[&name].version, Some(version), "{work} leased to a worker without the version");
            if work.is_training() {
                self.leased_to.insert(name);
            }
        }
        if work.is_training() {
            assert!(self.disk.leases.contains(&(work.group, attempt)), "{work}: leased before it was recorded");
        }
        let delivery = DeliveryId(self.fresh());
        let digest = format!("t{:x}", hash(&[&format!("{work:?}"), &version.to_string()]));
        self.deliveries.insert(delivery, (work, digest.clone()));
        let result = Ok(TrajectoriesSummary { digest, samples, versions: Some((version, version)) });
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
        self.deliveries.insert(delivery, (work, summary.digest.clone()));
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
        let order: Vec<GroupId> = disk.past.intents.values().flat_map(|i| i.groups.clone()).collect();
        assert!(order.is_sorted(), "{order:?}");
    }
}

impl Disk {
    fn apply(&mut self, facts: &[Fact], deliveries: &BTreeMap<DeliveryId, (Work, String)>) {
        let record = |delivery: &DeliveryId, group: &GroupId| {
            let (work, digest) = &deliveries[delivery];
            assert_eq!(work.group, *group);
            (digest.clone(), id(Role::Rollout, 0))
        };
        for fact in facts {
            match fact {
                Fact::Opened { group, cursor } => {
                    assert!(self.generated.insert(*group), "group {group} opened twice");
                    self.past.next_group = self.past.next_group.max(group.0 + 1);
                    self.past.next_cursor = self.past.next_cursor.max(cursor + 1);
                    let open = PastGroup { cursor: *cursor, attempt: AttemptId(0), trajectories: None, scores: None };
                    self.past.open_groups.insert(*group, open);
                }
                Fact::Leased { group, attempt, .. } => {
                    assert!(self.leases.insert((*group, *attempt)), "attempt {attempt} at group {group} twice");
                    self.past.open_groups.get_mut(group).expect("a lease of a closed group").attempt = *attempt;
                }
                Fact::Trajectories { group, delivery } => {
                    let open = self.past.open_groups.get_mut(group).expect("trajectories of a closed group");
                    assert!(open.trajectories.replace(record(delivery, group)).is_none(), "trajectories twice");
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
                Fact::Dropped { group, .. } => {
                    assert!(self.dropped.insert(*group));
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

const CALM: Trouble = Trouble { kill: 0, restart: 0, doubled: 0, score_fails: 0, hang: 0 };

#[test]
fn an_undisturbed_run_does_each_thing_once() {
    let world = World::new(plan(), 1, CALM, 2, 2).run();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    world.check_accounts();
    assert_eq!((world.steps_taken, world.replays), (5, 0));
    assert_eq!(world.disk.generated.len(), 20);
    assert_eq!(world.disk.past.checkpoints.iter().map(|c| c.version.0).collect::<Vec<_>>(), [2, 4, 5]);
    assert_eq!(world.disk.evaluated.keys().map(|k| k.0).collect::<BTreeSet<_>>(), [0, 2, 4, 5].into());
    assert!(world.disk.evaluated.values().all(|reward| *reward == 1.0));
    assert_eq!(world.leased_to.len(), 2, "both rollout workers had their share");
}

#[test]
fn intents_do_not_depend_on_workers_losses_or_order() {
    let calm = World::new(plan(), 1, CALM, 1, 1).run();
    let mut kills = 0;
    let mut replays = 0;
    let mut restarts = 0;
    let mut again = 0;
    for seed in 0..300u64 {
        let trouble = Trouble {
            kill: [0, 40, 150, 400][seed as usize % 4],
            restart: [0, 120, 500][seed as usize % 3],
            doubled: 10,
            score_fails: [0, 30][seed as usize % 2],
            hang: [0, 600][(seed / 2) as usize % 2],
        };
        let plan = Plan { rollout_workers: 1 + (seed % 3) as u16, shared_engine: seed % 5 == 0, ..plan() };
        let world = World::new(plan, seed, trouble, 1 + (seed % 3) as u16, 1 + (seed % 2) as u16).run();
        assert_eq!(world.outcome, Some(Outcome::Finished), "seed {seed}");
        world.check_accounts();
        assert_eq!(world.disk.past.intents, calm.disk.past.intents, "seed {seed}");
        assert_eq!(world.disk.past.commits, calm.disk.past.commits, "seed {seed}");
        assert_eq!(world.disk.evaluated, calm.disk.evaluated, "seed {seed}");
        kills += world.kills;
        replays += world.replays;
        again += world.answered_again;
        restarts += world.state.epoch().0 - 1;
    }
    // The troubles really happened.
    let seen = format!("{kills} kills, {replays} replays, {restarts} restarts, {again} steps answered from memory");
    assert!(kills > 1000 && replays > 100 && restarts > 300 && again > 5, "{seen}");
}

#[test]
fn equal_seeds_replay_alike() {
    let trouble = Trouble { kill: 60, restart: 200, doubled: 8, score_fails: 20, hang: 500 };
    let a = World::new(plan(), 9, trouble, 3, 2).run();
    let b = World::new(plan(), 9, trouble, 3, 2).run();
    assert_eq!((a.kills, a.next, a.replays), (b.kills, b.next, b.replays));
}

#[test]
fn a_grader_that_keeps_failing_stops_the_run_with_its_words() {
    let trouble = Trouble { score_fails: 1, ..CALM };
    let world = World::new(Plan { evaluation: None, ..plan() }, 3, trouble, 1, 1).run();
    match world.outcome.as_ref().unwrap() {
        Outcome::Failed { error } => assert!(error.contains("judge: 503") && error.contains("--resume"), "{error}"),
        other => panic!("{other:?}"),
    }
    world.check_accounts();
    assert!(world.disk.consumed.is_empty());
}

#[test]
fn dropped_groups_are_replaced_and_accounted_for() {
    let trouble = Trouble { score_fails: 3, ..CALM };
    let plan = Plan { on_failure: OnFailure::Drop, max_failures: 1, evaluation: None, ..plan() };
    let mut world = World::new(plan, 5, trouble, 2, 1);
    world.plan.groups_per_step = 4;
    for turn in 0..20_000 {
        if world.outcome.is_some() || world.disk.consumed.len() >= 12 {
            break;
        }
        // The cursor of a checkpoint counts dropped groups too: not what `obey` expects, so stop before the end.
        if !world.disk.past.commits.is_empty() {
            break;
        }
        world.turn(turn);
    }
    world.check_accounts();
    assert!(!world.disk.dropped.is_empty());
    assert_eq!(world.disk.past.intents[&StepId(1)].groups.len(), 4);
    assert!(world.disk.past.intents[&StepId(1)].groups.iter().all(|g| !world.disk.dropped.contains(g)));
}

#[test]
fn a_drain_saves_and_a_resume_ends_as_if_nothing_had_been() {
    let calm = World::new(plan(), 1, CALM, 2, 1).run();
    for stop_at in [10, 60, 200, 420, 700] {
        let mut world = World::new(plan(), 4, CALM, 2, 1);
        for turn in 0..stop_at {
            world.turn(turn);
        }
        world.give(Event::DrainRequested { reason: "SIGTERM".into() });
        let mut world = world.run();
        let committed = world.state.version().0;
        assert!(matches!(world.outcome, Some(Outcome::Drained | Outcome::Finished)), "{:?}", world.outcome);
        if committed > 0 {
            assert!(world.disk.past.checkpoints.iter().any(|c| c.version.0 == committed), "nothing saved at {committed}");
        }
        world.outcome = None;
        world.restart_coordinator();
        let world = world.run();
        assert_eq!(world.disk.past.intents, calm.disk.past.intents);
        assert_eq!(world.disk.past.commits, calm.disk.past.commits);
        world.check_accounts();
    }
}

#[test]
fn a_replay_with_other_bits_stops_the_run() {
    let mut world = World::new(plan(), 2, CALM, 1, 1);
    for turn in 0..50_000 {
        if world.disk.past.commits.len() == 1 && world.state.version().0 == 1 {
            break;
        }
        world.turn(turn);
    }
    let mut commit = world.state.commits()[&StepId(1)].clone();
    commit.weights_digest ^= 1;
    let now = world.now;
    let (conn, epoch) = (ConnId(1 << 40), world.state.epoch());
    let mut out = Vec::new();
    let learner = id(Role::Learner, 0);
    for event in [
        Event::Connected { conn, worker: learner, incarnation: 9, pid: 1 },
        Event::LearnerReady { conn, version: None },
        Event::Loaded { conn, epoch, version: PolicyVersion(0), digest: world.learner_digest[&0] },
        Event::Stepped { conn, epoch, commit },
    ] {
        world.state.on_event(now, event, &mut out);
    }
    match out.last() {
        Some(Command::Phase(_)) | None => {}
        Some(other) => panic!("{other:?}"),
    }
    let failed = out.iter().any(|c| matches!(c, Command::Finish(Outcome::Failed { error }) if error.contains("taken again")));
    assert!(failed, "{out:?}");
}

#[test]
fn late_doubled_and_foreign_results_are_acknowledged_and_forgotten() {
    let mut world = World::new(Plan { evaluation: None, ..plan() }, 7, CALM, 1, 1);
    let lease = loop {
        let names: Vec<WorkerId> = world.workers.keys().copied().collect();
        for name in names {
            if world.workers[&name].conn.is_none() {
                world.connect(name);
            }
            world.deliver(name);
            world.finish_a_record();
        }
        let found = world.queues.values().flatten().find(|e| matches!(e, Event::Trajectories { .. })).cloned();
        if let Some(event) = found {
            break event;
        }
    };
    let Event::Trajectories { conn, work, attempt, result, .. } = lease.clone() else { unreachable!() };
    let delivery = DeliveryId(1 << 40);
    let now = world.now;
    let foreign = Event::Trajectories { conn, delivery, epoch: Epoch(9), work, attempt, result: result.clone() };
    let fenced = Event::Trajectories { conn, delivery, epoch: Epoch(1), work, attempt: AttemptId(0), result: result.clone() };
    let unknown = Work::train(GroupId(999));
    let unleased = Event::Trajectories { conn, delivery, epoch: Epoch(1), work: unknown, attempt, result };
    for event in [foreign, fenced, unleased] {
        let mut out = Vec::new();
        world.state.on_event(now, event, &mut out);
        assert!(
            matches!(out.first(), Some(Command::Discard { .. })) && !out.iter().any(|c| matches!(c, Command::Record { .. })),
            "{out:?}"
        );
    }
    let mut out = Vec::new();
    world.state.on_event(now, lease.clone(), &mut out);
    assert!(out.iter().any(|c| matches!(c, Command::Record { .. })));
    out.clear();
    world.state.on_event(now, lease, &mut out);
    assert!(matches!(out.first(), Some(Command::Discard { .. })), "{out:?}");
    assert_eq!(world.state.counters().fenced, 4);
}
