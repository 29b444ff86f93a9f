//! The real controller and workers that are numbers: what they say comes after a drawn while, in virtual time.
//!
//! The model. A rollout worker takes four groups at once and 5 to 15 s for each; there is a reward worker for every ten of
//! them, which takes 32 groups at once and 0.2 to 0.6 s for each; a step has two groups for every rollout worker. The ledger
//! answers after 5 ms, the learner takes 3 s for a step, 0.5 s to publish, a worker 1 s to take weights. Everyone beats
//! each second, and the clock is looked at ten times a second.
use anyhow::{Result, ensure};
use cohort_cluster::controller::{
    Command, ConnId, ControllerState, Deadlines, DeliveryId, Event, OnFailure, Outcome, Plan, ScoresSummary, TrajectoriesSummary,
};
use cohort_cluster::ledger::Past;
use cohort_protocol::{Epoch, PolicyVersion, Role, StepCommit, WorkerId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

/// Groups of a step, and groups at once, of a rollout worker.
const SHARE: u32 = 2;
const CAPACITY: u16 = 4;
/// Rollout workers of a reward worker, and the groups it takes at once.
const GRADED: u16 = 10;
const GRADER: u16 = 32;
/// Steps of a run; the loss comes in the middle of the one named.
pub(crate) const STEPS: u64 = 5;
const LOSS_IN: u64 = 3;
/// Events that are made at once.
const PART: usize = 1024;
/// How long lost workers stay away.
const AWAY: Duration = Duration::from_secs(5);
const EPOCH: Epoch = Epoch(1);

/// What a run was made of, and what was seen of it.
pub(crate) struct Run {
    /// Rollout workers.
    pub(crate) workers: u16,
    plan: Plan,
    /// Everything the controller heard, and when.
    events: Vec<(Duration, Event)>,
    /// Groups that steps consumed.
    pub(crate) groups: u64,
    /// The loss, if there was one.
    pub(crate) loss: Option<Loss>,
    /// The controller as it was in the middle of a step.
    pub(crate) in_the_middle: ControllerState,
}

/// Losing a part of the workers at once.
#[derive(Debug, Clone)]
pub(crate) struct Loss {
    at: usize,
    until: usize,
    /// Workers that were lost.
    pub(crate) workers: usize,
    /// Groups that they had.
    pub(crate) groups: usize,
    /// Until the last of these groups was leased to another.
    pub(crate) recovery: Duration,
}

struct World {
    base: Instant,
    now: Duration,
    state: ControllerState,
    /// What is going to be said, by when; the number keeps the order of equals.
    coming: BinaryHeap<Reverse<(Duration, u64, Coming)>>,
    next: u64,
    there: BTreeMap<ConnId, WorkerId>,
    events: Vec<(Duration, Event)>,
    lose: u16,
    lost: BTreeSet<cohort_cluster::controller::Work>,
    loss: Option<Loss>,
    middle: Option<ControllerState>,
    outcome: Option<Outcome>,
}

/// Something on its way to the controller.
struct Coming(Say);

enum Say {
    From(ConnId, Event),
    Own(Event),
    Beat(ConnId),
    Tick,
    Join(WorkerId),
    Loss,
}

// Only the moment and the number order what is coming.
impl PartialEq for Coming {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Coming {}
impl PartialOrd for Coming {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Coming {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn plan(workers: u16, max_staleness: u64) -> Plan {
    Plan {
        steps: STEPS,
        groups_per_step: u32::from(workers) * SHARE,
        group_size: 8,
        max_staleness,
        rollout_workers: workers,
        shared_engine: false,
        slots: 4,
        evaluation: None,
        checkpoint_every: 0,
        replay_at_most: None,
        on_failure: if max_staleness > 0 { OnFailure::Drop } else { OnFailure::Stop },
        max_failures: 3,
        deadlines: Deadlines::default(),
    }
}

/// A whole run; a tenth of the rollout workers is lost in the middle of a step if `lose`.
pub(crate) fn run(workers: u16, max_staleness: u64, lose: bool) -> Result<Run> {
    let plan = plan(workers, max_staleness);
    let mut world = World {
        base: Instant::now(),
        now: Duration::ZERO,
        state: ControllerState::new(plan.clone(), EPOCH, Past::default()),
        coming: BinaryHeap::new(),
        next: 0,
        there: BTreeMap::new(),
        events: Vec::new(),
        lose: if lose { (workers / 10).max(1) } else { 0 },
        lost: BTreeSet::new(),
        loss: None,
        middle: None,
        outcome: None,
    };
    let graders = workers.div_ceil(GRADED);
    for (role, count) in [(Role::Learner, 1), (Role::Reward, graders), (Role::Rollout, workers)] {
        for index in 0..count {
            // All within a second, as they come up.
            let at = ms(1000 * u64::from(index) / u64::from(count));
            world.comes(at, Say::Join(WorkerId { role, index }));
        }
    }
    world.comes(ms(100), Say::Tick);
    while world.outcome.is_none() {
        let Some(Reverse((at, _, Coming(say)))) = world.coming.pop() else { break };
        world.now = at;
        world.say(say);
    }
    ensure!(world.outcome == Some(Outcome::Finished), "{workers} workers: the run ended with {:?}", world.outcome);
    let groups = world.state.accounts().consumed;
    let Some(in_the_middle) = world.middle else { anyhow::bail!("the run had no middle") };
    Ok(Run { workers, plan, groups, loss: world.loss, in_the_middle, events: world.events })
}

impl Run {
    /// Pieces of news.
    pub(crate) fn events(&self) -> usize {
        self.events.len()
    }

    /// The controller hears all of it again. Seconds of its own for all of it, and from the loss to the recovery.
    pub(crate) fn hear_again(&self) -> (f64, f64) {
        let base = Instant::now();
        let mut state = ControllerState::new(self.plan.clone(), EPOCH, Past::default());
        let mut out = Vec::new();
        let (mut spent, mut recovering) = (Duration::ZERO, Duration::ZERO);
        let loss = self.loss.as_ref().map_or(0..0, |loss| loss.at..loss.until + 1);
        for (part, heard) in self.events.chunks(PART).enumerate() {
            // As fresh in memory as from a connection, and made outside of what is measured.
            let fresh = heard.to_vec();
            for (i, (when, event)) in fresh.into_iter().enumerate() {
                let begun = Instant::now();
                state.on_event(base + when, event, &mut out);
                out.clear();
                let took = begun.elapsed();
                spent += took;
                if loss.contains(&(part * PART + i)) {
                    recovering += took;
                }
            }
        }
        (spent.as_secs_f64(), recovering.as_secs_f64())
    }
}

impl World {
    fn comes(&mut self, after: Duration, say: Say) {
        self.next += 1;
        self.coming.push(Reverse((self.now + after, self.next, Coming(say))));
    }

    /// Drawn from a number, the same at every run.
    fn draw(&self, key: u64, from: u64, to: u64) -> Duration {
        let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ms(from + (mixed >> 33) % (to - from))
    }

    fn say(&mut self, say: Say) {
        match say {
            Say::From(conn, event) if self.there.contains_key(&conn) => self.give(event),
            Say::From(..) => {}
            Say::Own(event) => self.give(event),
            Say::Beat(conn) if self.there.contains_key(&conn) => {
                let progress = self.events.len() as u64;
                self.give(Event::Beat { conn, progress });
                self.comes(ms(1000), Say::Beat(conn));
            }
            Say::Beat(_) => {}
            Say::Tick => {
                self.give(Event::Tick);
                self.comes(ms(100), Say::Tick);
            }
            Say::Join(worker) => self.join(worker),
            Say::Loss => self.lose(),
        }
    }

    fn join(&mut self, worker: WorkerId) {
        self.next += 1;
        let conn = ConnId(self.next);
        self.there.insert(conn, worker);
        self.give(Event::Connected { conn, worker, incarnation: 0, pid: 1 });
        self.give(match worker.role {
            Role::Rollout => Event::RolloutReady { conn, version: None, capacity: CAPACITY },
            Role::Reward => Event::RewardReady { conn, capacity: GRADER },
            _ => Event::LearnerReady { conn, version: None },
        });
        self.comes(ms(1000), Say::Beat(conn));
    }

    /// The last workers by name, all at once; they come back.
    fn lose(&mut self) {
        self.middle = Some(self.state.clone());
        if self.lose == 0 {
            return;
        }
        let first = self.state.plan().rollout_workers - self.lose;
        let gone = |w: &WorkerId| w.role == Role::Rollout && w.index >= first;
        let lost: Vec<(ConnId, WorkerId)> = self.there.iter().filter(|(_, w)| gone(w)).map(|(c, w)| (*c, *w)).collect();
        let held = |conn: &ConnId| self.state.members().get(*conn).map(|m| m.load.clone()).unwrap_or_default();
        self.lost = lost.iter().flat_map(|(conn, _)| held(conn)).collect();
        let (workers, groups, at) = (lost.len(), self.lost.len(), self.events.len());
        self.loss = Some(Loss { at, until: at, workers, groups, recovery: self.now });
        for (conn, worker) in lost {
            self.there.remove(&conn);
            self.give(Event::Disconnected { conn, why: "its host is gone".into() });
            self.comes(AWAY, Say::Join(worker));
        }
    }

    fn give(&mut self, event: Event) {
        self.events.push((self.now, event.clone()));
        let mut out = Vec::new();
        self.state.on_event(self.base + self.now, event, &mut out);
        for command in out {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        let epoch = EPOCH;
        match command {
            Command::Record { id, .. } => self.comes(ms(5), Say::Own(Event::Recorded(id))),
            Command::Lease { conn, work, attempt, version, samples, .. } => {
                self.leased(work);
                let key = work.group.0.wrapping_mul(31).wrapping_add(u64::from(attempt.0));
                let result = Ok(TrajectoriesSummary { digest: digest(key), samples, versions: Some((version, version)) });
                let delivery = self.delivery();
                let event = Event::Trajectories { conn, delivery, epoch, work, attempt, result };
                self.comes(self.draw(key, 5000, 15_000), Say::From(conn, event));
            }
            Command::Score { conn, work, attempt, .. } => {
                let summary =
                    ScoresSummary { digest: digest(work.group.0), scores: vec![1.0; 8], parts: Vec::new(), failure: None };
                let delivery = self.delivery();
                let event = Event::Scores { conn, delivery, epoch, work, attempt, summary };
                self.comes(self.draw(work.group.0, 200, 600), Say::From(conn, event));
            }
            Command::Weights { conn, version, .. } => {
                let ready = Event::RolloutReady { conn, version: Some(version), capacity: CAPACITY };
                self.comes(ms(1000), Say::From(conn, ready));
            }
            Command::Load { conn, version, .. } => {
                self.comes(ms(1000), Say::From(conn, Event::Loaded { conn, epoch, version, digest: version.0 }));
            }
            Command::Publish { conn, version, slot } => {
                let published = Event::Published { conn, epoch, version, slot, digest: version.0 };
                self.comes(ms(500), Say::From(conn, published));
                if version == PolicyVersion(LOSS_IN - 1) {
                    // Once leased, well before the first group is done.
                    self.comes(ms(500 + 1000 + 3000), Say::Loss);
                }
            }
            Command::Step { conn, intent, .. } => {
                let version = intent.base.next();
                let commit = StepCommit {
                    step: intent.step,
                    version,
                    weights_sha256: String::new(),
                    weights_digest: version.0,
                    metrics: Vec::new(),
                };
                self.comes(ms(3000), Say::From(conn, Event::Stepped { conn, epoch, commit }));
            }
            Command::Checkpoint { conn, version, .. } => {
                let (dir, manifest_sha256) = (format!("checkpoints/step-{version}"), String::new());
                self.comes(ms(1000), Say::From(conn, Event::CheckpointSaved { conn, epoch, version, dir, manifest_sha256 }));
            }
            Command::Finish(outcome) => self.outcome = Some(outcome),
            _ => {}
        }
    }

    fn delivery(&mut self) -> DeliveryId {
        self.next += 1;
        DeliveryId(self.next)
    }

    fn leased(&mut self, work: cohort_cluster::controller::Work) {
        if self.lost.remove(&work)
            && let Some(loss) = self.loss.as_mut().filter(|_| self.lost.is_empty())
        {
            loss.recovery = self.now - loss.recovery;
            loss.until = self.events.len() - 1;
        }
    }
}

/// As long as a real one.
fn digest(key: u64) -> String {
    format!("{key:064x}")
}
