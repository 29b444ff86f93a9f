//! What holds in an asynchronous run in every world: nothing too stale is consumed, every group is accounted for, the run
//! gets to its end, and what was recorded is what the steps took.
use super::*;
use crate::controller::stream::STALE;

fn asynchronous(max_staleness: u64) -> Plan {
    Plan { max_staleness, on_failure: OnFailure::Drop, steps: 8, ..plan() }
}

impl World {
    /// A1, from what the disk holds: by how many versions the oldest consumed token was behind.
    fn staleness_consumed(&self) -> u64 {
        let ages = self.disk.past.intents.values().flat_map(|intent| {
            intent.groups.iter().map(|group| {
                let (oldest, newest) = self.disk.versions[group];
                assert!(newest <= intent.base, "step {} consumes group {group} of version {newest}", intent.step);
                intent.base.0 - oldest.0
            })
        });
        ages.max().unwrap_or(0)
    }

    /// A2 at every moment: groups that are open and in no intent.
    fn check_ahead(&self) {
        let decided: BTreeSet<GroupId> = self.disk.past.intents.values().flat_map(|i| i.groups.iter().copied()).collect();
        let open = self.disk.past.open_groups.keys().filter(|group| !decided.contains(group)).count() as u64;
        let most = (self.plan.max_staleness + 1) * u64::from(self.plan.groups_per_step);
        assert!(open <= most, "{open} groups are under way, at most {most} may be");
    }

    fn run_watched(mut self) -> Self {
        for turn in 0..120_000 {
            if self.outcome.is_some() {
                return self;
            }
            self.turn(turn);
            self.check_ahead();
        }
        panic!("stuck in {:?} at version {}: {:#?}", self.state.phase(), self.state.version(), self.state.wave);
    }
}

#[test]
fn nothing_too_stale_is_consumed_and_every_group_is_accounted_for() {
    let (mut stale, mut behind, mut restarts, mut failed) = (0, BTreeMap::<u64, u64>::new(), 0, 0);
    for seed in 0..200u64 {
        let max = 1 + seed % 3;
        let rollouts = 1 + (seed % 4) as u16;
        let trouble = Trouble {
            kill: [0, 60, 200][seed as usize % 3],
            restart: [0, 300, 0, 700][seed as usize % 4],
            doubled: 10,
            score_fails: [0, 25][seed as usize % 2],
            hang: [0, 0, 900][(seed / 3) as usize % 3],
            slow: if rollouts > 1 { [30, 120, 0][(seed / 3) as usize % 3] } else { 0 },
        };
        let plan = Plan { rollout_workers: rollouts, shared_engine: seed % 5 == 0, ..asynchronous(max) };
        let world = World::new(plan, seed, trouble, rollouts, 1 + (seed % 2) as u16).run_watched();
        assert_eq!(world.outcome, Some(Outcome::Finished), "seed {seed}");
        world.check_accounts();
        assert_eq!(world.disk.consumed.len(), 8 * 4, "seed {seed}");
        assert!(world.disk.past.open_groups.is_empty(), "seed {seed}: {:?}", world.disk.past.open_groups);
        let oldest = world.staleness_consumed();
        assert!(oldest <= max, "seed {seed}: a token {oldest} versions old, at most {max}");
        *behind.entry(oldest).or_default() += 1;
        let rounds: BTreeSet<u64> = world.disk.evaluated.keys().map(|k| k.0).collect();
        assert_eq!(rounds, [0, 2, 4, 6, 8].into(), "seed {seed}");
        let accounts = world.state.accounts();
        assert_eq!((accounts.consumed, accounts.in_flight()), (32, 0), "seed {seed}: {accounts:?}");
        assert_eq!(accounts.dropped, world.disk.past.dropped, "seed {seed}");
        stale += world.disk.reasons.get(STALE).copied().unwrap_or(0);
        failed += world.disk.reasons.values().sum::<u32>() - world.disk.reasons.get(STALE).copied().unwrap_or(0);
        restarts += world.state.epoch().0 - 1;
    }
    let seen = format!("{stale} too stale, {failed} failed, {restarts} restarts, versions behind: {behind:?}");
    assert!(stale > 20 && restarts > 50 && behind.len() > 2, "{seen}");
}

/// A3: the prompt of a group that was too stale is answered by another group.
#[test]
fn no_prompt_is_lost_with_a_stale_group() {
    let mut lost = 0;
    for seed in 0..40 {
        let trouble = Trouble { slow: 150, restart: [0, 400][seed as usize % 2], ..CALM };
        let world = World::new(Plan { rollout_workers: 3, ..asynchronous(1) }, seed, trouble, 3, 1).run_watched();
        let cursors = |groups: &mut dyn Iterator<Item = &GroupId>| groups.map(|g| world.disk.cursors[g]).collect::<BTreeSet<_>>();
        let consumed = cursors(&mut world.disk.consumed.keys());
        assert_eq!(consumed, (0..32).collect(), "seed {seed}: every row once, though {:?}", world.disk.reasons);
        lost += world.disk.dropped.len();
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn a_slow_worker_does_not_hold_the_others_up() {
    let turns = |max_staleness: u64, seed: u64| {
        let trouble = Trouble { slow: 400, ..CALM };
        let plan = Plan { evaluation: None, rollout_workers: 3, ..asynchronous(max_staleness) };
        let mut world = World::new(plan, seed, trouble, 3, 1);
        let mut turns = 0u32;
        // The last groups of a run are waited for in either mode.
        while world.disk.past.commits.len() < 5 {
            world.turn(turns);
            turns += 1;
            assert!(turns < 200_000);
        }
        turns
    };
    let total = |max_staleness| (0..5).map(|seed| turns(max_staleness, seed)).sum::<u32>();
    let (synchronous, ahead) = (total(0), total(2));
    assert!(ahead * 2 < synchronous, "{ahead} turns with groups ahead, {synchronous} without");
}

#[test]
fn rewards_that_cannot_be_had_end_the_run() {
    let plan = Plan { evaluation: None, max_failures: 1, ..asynchronous(2) };
    let world = World::new(plan, 3, Trouble { score_fails: 1, ..CALM }, 2, 1).run_watched();
    match &world.outcome {
        Some(Outcome::Failed { error, .. }) => assert!(error.contains("in a row") && error.contains("judge: 503"), "{error}"),
        other => panic!("{other:?}"),
    }
    world.check_accounts();
}

#[test]
fn a_drain_in_the_middle_and_a_resume_lose_nothing() {
    for stop_at in [30, 200, 700, 1500] {
        let mut world = World::new(asynchronous(2), 4, Trouble { slow: 20, ..CALM }, 3, 1);
        for turn in 0..stop_at {
            world.turn(turn);
        }
        world.give(Event::DrainRequested { reason: "SIGTERM".into() });
        let mut world = world.run_watched();
        assert!(matches!(world.outcome, Some(Outcome::Drained | Outcome::Finished)), "{:?}", world.outcome);
        world.outcome = None;
        world.restart_coordinator();
        let world = world.run_watched();
        assert_eq!(world.outcome, Some(Outcome::Finished));
        world.check_accounts();
        assert!(world.disk.consumed.len() == 32 && world.staleness_consumed() <= 2);
    }
}
