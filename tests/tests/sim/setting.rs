//! What a seed decides before anything happens: the run's plan, who takes part, and which troubles come when.
use crate::chance::Chance;
use cohort_cluster::controller::{Deadlines, EvaluationPlan, OnFailure, Plan};
use std::time::Duration;

/// Until when troubles come.
pub(crate) const TROUBLED: Duration = Duration::from_secs(30);
/// From then on the run has this long to finish.
pub(crate) const HEALED: Duration = Duration::from_secs(180);

/// A seed's run.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) seed: u64,
    pub(crate) plan: Plan,
    /// Rollout workers of the head node.
    pub(crate) rollouts: u16,
    /// Reward workers of the head node.
    pub(crate) rewards: u16,
    /// Other hosts, each with one rollout worker, the last one with a reward worker too.
    pub(crate) hosts: u16,
    /// A host whose workers speak the protocol version before partial groups.
    pub(crate) old_build: Option<u16>,
    pub(crate) rates: Rates,
    /// In order of time.
    pub(crate) blows: Vec<(Duration, Blow)>,
}

/// Of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    /// Bulk deliveries that come twice.
    pub(crate) doubled: u64,
    /// Bulk deliveries that take seconds: what was made for one coordinator comes to the next when that has asked for it anew.
    pub(crate) late: u64,
    /// Gradings that fail.
    pub(crate) score_fails: u64,
    /// Generations that fail.
    pub(crate) lease_fails: u64,
    /// Chunks of weights that arrive with other bytes.
    pub(crate) corrupt: u64,
    /// Messages and jobs that take ten times as long.
    pub(crate) slow: u64,
}

/// What a fact is about, for the moments around its write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Lease,
    Trajectories,
    Scores,
    Intent,
    Commit,
    Dropped,
    Checkpoint,
    Evaluation,
}

/// Where a coordinator dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    /// Wherever it is.
    Anywhere,
    /// The fact was ordered to be written and is not.
    Before(Kind),
    /// Payloads are in the segment, whole, and the index does not know of them.
    Indexing(Kind),
    /// Half of a payload is in the segment.
    Torn(Kind),
    /// The fact is durable and nobody has heard of it.
    After(Kind),
    /// The next one, while it recovers.
    Recovering,
}

/// All of them that a plan can reach.
pub(crate) fn points(plan: &Plan) -> Vec<Point> {
    let mut kinds =
        vec![Kind::Lease, Kind::Trajectories, Kind::Scores, Kind::Intent, Kind::Commit, Kind::Checkpoint, Kind::Evaluation];
    if plan.is_asynchronous() {
        kinds.push(Kind::Dropped);
    }
    let mut all = vec![Point::Anywhere, Point::Recovering];
    for kind in kinds {
        all.extend([Point::Before(kind), Point::After(kind)]);
        if matches!(kind, Kind::Trajectories | Kind::Scores) {
            all.extend([Point::Indexing(kind), Point::Torn(kind)]);
        }
    }
    all
}

/// A trouble.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Blow {
    /// A worker's process is killed; which one, by a number.
    Kill(u64),
    /// The learner's is.
    KillLearner,
    /// A worker is stopped; `None`: it never goes on.
    Hang(u64, Option<Duration>),
    /// A worker beats and gets nothing done.
    Spin(u64),
    /// A worker's work takes eight times as long from now on.
    Slow(u64),
    /// A connection breaks: what is under way on it is lost.
    Break(u64),
    /// Nothing passes between a host and the others, in one direction or both.
    Partition { host: u64, up: bool, down: bool, lasts: Duration },
    /// The same again and again.
    Flap { host: u64, times: u64 },
    /// A host is gone with all its processes, and comes back empty.
    LoseHost(u64),
    /// The coordinator dies at the n-th passing of a point.
    Crash(Point, u32),
    /// The coordinator is stopped for a while.
    Stall(Duration),
    /// A checkpoint is damaged on the disk.
    Damage,
}

impl Setting {
    /// What a seed decides.
    pub(crate) fn of(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut calm = Self::calm(seed % 2 * (1 + chance.below(2)), seed);
        calm.rollouts = 1 + chance.below(2) as u16;
        calm.rewards = 1 + chance.below(2) as u16;
        calm.hosts = [0, 1, 2, 3][chance.below(4) as usize];
        calm.old_build = (seed % 7 == 3 && calm.hosts > 0).then_some(1);
        calm.plan.rollout_workers = calm.rollouts + calm.hosts;
        calm.plan.slots = 2 + (seed / 2 % 2) as u32;
        calm.rates = Rates {
            doubled: [0, 100, 400][chance.below(3) as usize],
            late: [0, 60, 250][chance.below(3) as usize],
            score_fails: [0, 20, 80][chance.below(3) as usize],
            lease_fails: [0, 10, 40][chance.below(3) as usize],
            corrupt: [0, 50][chance.below(2) as usize],
            slow: [0, 15, 60][chance.below(3) as usize],
        };
        let count = chance.below(16);
        let points = points(&calm.plan);
        let mut blows: Vec<(Duration, Blow)> = (0..count)
            .map(|_| {
                let at = chance.between(Duration::from_millis(500), TROUBLED);
                (at, Self::blow(&mut chance, &points))
            })
            .collect();
        // Every point has its turn, whatever else comes.
        if seed / 2 % 3 != 2 {
            let point = points[(seed / 2) as usize % points.len()];
            blows.push((chance.ms(500, 9000), Blow::Crash(point, 1)));
        }
        blows.sort_by_key(|(at, _)| *at);
        calm.blows = blows;
        calm
    }

    /// The same run with nothing in its way.
    pub(crate) fn calm(max_staleness: u64, seed: u64) -> Self {
        let plan = Plan {
            steps: 6,
            groups_per_step: 3,
            group_size: 2,
            max_staleness,
            rollout_workers: 1,
            shared_engine: false,
            slots: 3,
            evaluation: Some(EvaluationPlan { every: 2, prompts: 3, samples: 2, greedy: true }),
            checkpoint_every: 2,
            replay_at_most: None,
            on_failure: if max_staleness > 0 { OnFailure::Drop } else { OnFailure::Stop },
            max_failures: if max_staleness > 0 { 3 } else { 8 },
            deadlines: Deadlines {
                silence: Duration::from_secs(5),
                stall: Duration::from_secs(8),
                lease: Duration::from_secs(20),
                score: Duration::from_secs(15),
                retry: Duration::from_millis(200),
                full_disk: Duration::from_secs(60),
            },
        };
        Self { seed, plan, rollouts: 1, rewards: 1, hosts: 0, old_build: None, rates: Rates::default(), blows: Vec::new() }
    }

    fn blow(chance: &mut Chance, points: &[Point]) -> Blow {
        let who = chance.next();
        match chance.below(22) {
            0..=2 => Blow::Kill(who),
            3 => Blow::KillLearner,
            4 => Blow::Hang(who, Some(chance.ms(500, 9000))),
            5 => Blow::Hang(who, None),
            6 => Blow::Spin(who),
            7 => Blow::Slow(who),
            8..=9 => Blow::Break(who),
            10 => Blow::Partition { host: who, up: true, down: true, lasts: chance.ms(500, 16_000) },
            11 => {
                let up = who.is_multiple_of(2);
                Blow::Partition { host: who / 2, up, down: !up, lasts: chance.ms(500, 16_000) }
            }
            12 => Blow::Flap { host: who, times: 2 + chance.below(4) },
            13 => Blow::LoseHost(who),
            14 => Blow::Stall(chance.ms(500, 9000)),
            15 => Blow::Damage,
            _ => {
                let point = *chance.pick(points).unwrap_or(&Point::Anywhere);
                // Groups are dropped now and then, all else happens again and again.
                let rare = matches!(point, Point::Before(Kind::Dropped) | Point::After(Kind::Dropped));
                Blow::Crash(point, 1 + chance.below(if rare { 1 } else { 4 }) as u32)
            }
        }
    }
}
