//! What holds in every world: the same intents, each thing once, accounts that balance.
use super::*;

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
            slow: 0,
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
fn a_checkpoint_is_saved_before_a_replay_would_take_too_long() {
    let saved = |replay_at_most: Option<Duration>| {
        let plan = Plan { steps: 12, evaluation: None, checkpoint_every: 0, replay_at_most, ..plan() };
        let world = World::new(plan, 4, CALM, 2, 2).run();
        assert_eq!(world.outcome, Some(Outcome::Finished));
        world.disk.past.checkpoints.iter().map(|c| c.version.0).collect::<Vec<_>>()
    };
    assert_eq!(saved(None), [12]);
    assert_eq!(saved(Some(Duration::from_secs(3600))), [12]);
    let (some, many) = (saved(Some(Duration::from_secs(2))), saved(Some(Duration::from_nanos(1))));
    assert!(1 < some.len() && some.len() < many.len() && many.len() <= 12, "{some:?}, {many:?}");
    assert!(some.last() == Some(&12) && many.last() == Some(&12));
}

#[test]
fn equal_seeds_replay_alike() {
    let trouble = Trouble { kill: 60, restart: 200, doubled: 8, score_fails: 20, hang: 500, slow: 0 };
    let a = World::new(plan(), 9, trouble, 3, 2).run();
    let b = World::new(plan(), 9, trouble, 3, 2).run();
    assert_eq!((a.kills, a.next, a.replays), (b.kills, b.next, b.replays));
}

#[test]
fn a_grader_that_keeps_failing_stops_the_run_with_its_words() {
    let trouble = Trouble { score_fails: 1, ..CALM };
    let world = World::new(Plan { evaluation: None, ..plan() }, 3, trouble, 1, 1).run();
    match world.outcome.as_ref().unwrap() {
        Outcome::Failed { error, .. } => assert!(error.contains("judge: 503") && error.contains("--resume"), "{error}"),
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
    let failed = out.iter().any(|c| matches!(c, Command::Finish(Outcome::Failed { error, .. }) if error.contains("taken again")));
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
