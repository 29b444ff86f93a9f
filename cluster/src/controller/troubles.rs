//! What hangs, dies or fails again and again: each trouble is waited out while there is hope and then named. Virtual time.
use super::membership::{MAX_LOSSES, MAX_REPLACEMENTS};
use super::*;
use crate::ledger::{Past, PastCheckpoint};
use cohort_protocol::messages::learner::{Fault, LoadFrom};
use cohort_protocol::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

mod desk;
mod room;
use desk::Desk;

const SECOND: Duration = Duration::from_secs(1);
const LEARNER: WorkerId = WorkerId { role: Role::Learner, index: 0 };
const ROLLOUT: WorkerId = WorkerId { role: Role::Rollout, index: 0 };
const REWARD: WorkerId = WorkerId { role: Role::Reward, index: 0 };

fn plan() -> Plan {
    Plan {
        steps: 2,
        groups_per_step: 6,
        group_size: 1,
        max_staleness: 0,
        rollout_workers: 1,
        shared_engine: false,
        slots: 3,
        evaluation: None,
        checkpoint_every: 0,
        replay_at_most: None,
        on_failure: OnFailure::Stop,
        max_failures: 3,
        deadlines: Deadlines::default(),
    }
}

fn failed(commands: &[Command]) -> Option<&str> {
    commands.iter().find_map(|c| match c {
        Command::Finish(Outcome::Failed { error, .. }) => Some(error.as_str()),
        _ => None,
    })
}

fn replaced(commands: &[Command]) -> Option<WorkerId> {
    commands.iter().find_map(|c| if let Command::Replace { worker, .. } = c { Some(*worker) } else { None })
}

/// A desk at which reward-0 has been asked for scores.
fn scoring() -> Desk {
    let mut desk = Desk::new(plan(), Past::default());
    desk.learner_up();
    desk.join(REWARD);
    let out = desk.join(ROLLOUT);
    let told = [out.clone(), desk.publish(&out)].concat();
    assert!(told.iter().any(|c| matches!(c, Command::Weights { .. })), "{told:?}");
    let leases = desk.swap(ROLLOUT);
    let asked = desk.generate(&leases);
    assert!(asked.iter().any(|c| matches!(c, Command::Score { .. })), "{asked:?}");
    desk
}

#[test]
fn a_grader_within_its_own_limits_is_waited_for_and_one_that_hangs_is_not() {
    let mut desk = scoring();
    desk.moving = vec![REWARD, ROLLOUT];
    let out = desk.seconds(1000);
    assert!(replaced(&out).is_none() && failed(&out).is_none(), "{out:?}");
    desk.moving = vec![ROLLOUT];
    assert_eq!(replaced(&desk.seconds(119)), None);
    assert_eq!(replaced(&desk.seconds(5)), Some(REWARD));
}

#[test]
fn a_worker_that_hangs_whenever_it_is_started_ends_the_run() {
    for hangs in [REWARD, ROLLOUT, LEARNER] {
        let mut desk = match hangs.role {
            Role::Reward => scoring(),
            _ => Desk::new(plan(), Past::default()),
        };
        let mut replacements = 0;
        let error = loop {
            for worker in [REWARD, ROLLOUT, LEARNER] {
                if worker != hangs && !desk.conns.contains_key(&worker) {
                    desk.moving.push(worker);
                    let out = if worker == LEARNER { desk.learner_up() } else { desk.join(worker) };
                    desk.publish(&out);
                }
            }
            if !desk.conns.contains_key(&hangs) {
                let out = desk.join(hangs);
                desk.publish(&out);
                if hangs == ROLLOUT {
                    desk.swap(hangs);
                }
            }
            let out = desk.second();
            replacements += u32::from(replaced(&out) == Some(hangs));
            if let Some(error) = failed(&out) {
                break error.to_owned();
            }
            assert!(desk.seconds < 2000, "{hangs} was replaced {replacements} times");
        };
        assert_eq!(replacements, MAX_REPLACEMENTS, "{hangs}: {error}");
        assert!(error.contains(&hangs.to_string()) && error.contains("no progress for"), "{error}");
    }
}

#[test]
fn a_worker_that_never_gets_ready_and_falls_silent_ends_the_run() {
    let mut desk = Desk::new(plan(), Past::default());
    let mut error = None;
    for _ in 0..MAX_REPLACEMENTS {
        let conn = ConnId(desk.fresh());
        desk.say(Event::Connected { conn, worker: ROLLOUT, incarnation: 0, pid: 1 });
        let out = desk.seconds(6);
        assert_eq!(replaced(&out), Some(ROLLOUT));
        error = failed(&out).map(str::to_owned);
    }
    assert!(error.as_ref().is_some_and(|e| e.contains("rollout-0") && e.contains("said nothing")), "{error:?}");
}

#[test]
fn a_worker_that_dies_at_every_try_ends_the_run() {
    for dies in [REWARD, LEARNER] {
        let mut desk = scoring();
        desk.moving = vec![REWARD, ROLLOUT, LEARNER];
        if dies == LEARNER {
            // Its load, whenever it comes back.
            desk.lose(LEARNER);
            desk.join(LEARNER);
        }
        let mut out = Vec::new();
        let mut deaths = 0;
        while failed(&out).is_none() {
            deaths += 1;
            assert!(deaths <= MAX_LOSSES, "{dies} may die for ever");
            out = desk.lose(dies);
            out.extend(desk.join(dies));
            // Not so fast that the agent would give up first.
            out.extend(desk.seconds(10));
        }
        let error = failed(&out).unwrap();
        assert_eq!(deaths, MAX_LOSSES);
        assert!(error.contains("signal 9") && error.contains(if dies == REWARD { "reward" } else { "learner-0" }), "{error}");
    }
}

#[test]
fn a_swap_that_fails_is_published_again_after_a_pause_and_not_for_ever() {
    let mut desk = Desk::new(plan(), Past::default());
    desk.learner_up();
    let out = desk.join(ROLLOUT);
    let mut told = [out.clone(), desk.publish(&out)].concat();
    let fails = |desk: &mut Desk| {
        let conn = desk.conns[&ROLLOUT];
        let mut out = desk.say(Event::SwapFailed { conn, version: PolicyVersion(0), error: "slot 0 is corrupt".into() });
        out.extend(desk.say(Event::RolloutReady { conn, version: None, capacity: 4 }));
        let published = desk.publish(&out);
        out.extend(published);
        out
    };
    let is_told = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::Weights { .. }));
    for _ in 0..2 {
        assert!(is_told(&told), "{told:?}");
        let out = fails(&mut desk);
        assert!(out.iter().any(|c| matches!(c, Command::Publish { .. })), "the slot is written anew: {out:?}");
        assert!(!is_told(&out), "not at once: {out:?}");
        told = desk.second();
    }
    let out = fails(&mut desk);
    let error = failed(&out).expect("the third failure ends the run");
    assert!(error.contains("rollout-0 could not take version 0") && error.contains("slot 0 is corrupt"), "{error}");

    // One that succeeds is forgiven what was before.
    let mut desk = Desk::new(plan(), Past::default());
    desk.learner_up();
    let out = desk.join(ROLLOUT);
    desk.publish(&out);
    fails(&mut desk);
    desk.second();
    let leases = desk.swap(ROLLOUT);
    assert!(leases.iter().any(|c| matches!(c, Command::Lease { .. })), "{leases:?}");
}

/// What it said before it heard of the version is no answer, and its slot is not written while it reads.
#[test]
fn an_older_word_of_a_worker_that_was_told_of_weights_is_no_failure() {
    let mut desk = Desk::new(plan(), Past::default());
    desk.learner_up();
    let out = desk.join(ROLLOUT);
    let told = [out.clone(), desk.publish(&out)].concat();
    assert!(told.iter().any(|c| matches!(c, Command::Weights { .. })), "{told:?}");
    let conn = desk.conns[&ROLLOUT];
    for _ in 0..5 {
        let out = desk.say(Event::RolloutReady { conn, version: None, capacity: 4 });
        assert!(out.iter().all(|c| !matches!(c, Command::Publish { .. } | Command::Weights { .. })), "{out:?}");
    }
    let leases = desk.swap(ROLLOUT);
    assert!(leases.iter().any(|c| matches!(c, Command::Lease { .. })), "{leases:?}");
}

/// A worker behind a slow line is told that its version is gone, again and again: that is not its failure.
#[test]
fn weights_that_others_have_outrun_are_no_failure() {
    let slow = WorkerId { role: Role::Rollout, index: 1 };
    let mut desk = Desk::new(Plan { rollout_workers: 2, groups_per_step: 2, ..plan() }, Past::default());
    desk.learner_up();
    desk.join(REWARD);
    let out = [desk.join(ROLLOUT), desk.join(slow)].concat();
    desk.publish(&out);
    let mut leases = desk.swap(ROLLOUT);
    while !leases.iter().any(|c| matches!(c, Command::Step { .. })) {
        let asked = desk.generate(&leases);
        leases = [asked.clone(), desk.score(&asked)].concat();
    }
    let (conn, learner) = (desk.conns[&slow], desk.conns[&LEARNER]);
    let fail = |desk: &mut Desk, version| {
        let error = "slot 0 holds version 6".into();
        desk.say(Event::SwapFailed { conn, version: PolicyVersion(version), error })
    };
    let commit = StepCommit {
        step: StepId(1),
        version: PolicyVersion(1),
        weights_sha256: String::new(),
        weights_digest: 11,
        metrics: Vec::new(),
    };
    let out = desk.say(Event::Stepped { conn: learner, epoch: Epoch(1), commit });
    let publish = out.iter().find(|c| matches!(c, Command::Publish { .. }));
    let Some(Command::Publish { version, slot, .. }) = publish else { panic!("{out:?}") };
    desk.say(Event::Published { conn: learner, epoch: Epoch(1), version: *version, slot: *slot, digest: 11 });
    // It was told of version 0, which is gone.
    let out = fail(&mut desk, 0);
    assert!(failed(&out).is_none() && out.iter().any(|c| matches!(c, Command::Notice(_))), "{out:?}");
    let told = desk.second();
    let newer = |c: &Command| matches!(c, Command::Weights { conn: to, version: PolicyVersion(1), .. } if *to == conn);
    assert!(told.iter().any(newer), "{told:?}");
    // Of the newest version every failure counts.
    assert!(failed(&fail(&mut desk, 1)).is_none());
    let member = desk.state.members.get(conn).map(|m| m.swap_failures);
    assert_eq!(member, Some(1));
}

#[test]
fn a_step_that_fails_whenever_it_is_taken_ends_the_run_though_every_load_succeeds() {
    let intent = StepIntent { step: StepId(1), base: PolicyVersion(0), groups: Vec::new(), digests: Vec::new() };
    let mut desk = Desk::new(plan(), Past { intents: [(StepId(1), intent)].into(), ..Past::default() });
    let mut out = desk.join(LEARNER);
    let conn = desk.conns[&LEARNER];
    for _ in 0..3 {
        assert_eq!(load_from(&out), Some(LoadFrom::Base), "{out:?}");
        let out_of_loading = desk.say(Event::Loaded { conn, epoch: Epoch(1), version: PolicyVersion(0), digest: 7 });
        assert!(out_of_loading.iter().any(|c| matches!(c, Command::Step { .. })), "{out_of_loading:?}");
        let (what, error) = ("step 1".to_owned(), "no memory for a batch of 9000 tokens".to_owned());
        out = desk.say(Event::LearnerFailed { conn, epoch: Epoch(1), what, error, fatal: false, fault: Fault::Compute });
        out.extend(desk.seconds(3));
    }
    assert!(failed(&out).is_some_and(|e| e.contains("step 1") && e.contains("9000 tokens")), "{out:?}");
    let blamed = |c: &Command| matches!(c, Command::Finish(Outcome::Failed { fault: Fault::Compute, .. }));
    assert!(out.iter().any(blamed), "the exit code names the engine: {out:?}");
}

/// A run of one committed step with a checkpoint of it.
fn past() -> Past {
    let intent = StepIntent { step: StepId(1), base: PolicyVersion(0), groups: Vec::new(), digests: Vec::new() };
    let commit = StepCommit {
        step: StepId(1),
        version: PolicyVersion(1),
        weights_sha256: String::new(),
        weights_digest: 11,
        metrics: Vec::new(),
    };
    let checkpoint = PastCheckpoint { version: PolicyVersion(1), dir: "checkpoints/step-1".into(), manifest_sha256: "m".into() };
    Past {
        intents: [(StepId(1), intent)].into(),
        commits: [(StepId(1), commit)].into(),
        checkpoints: vec![checkpoint],
        ..Past::default()
    }
}

fn load_from(commands: &[Command]) -> Option<LoadFrom> {
    commands.iter().find_map(|c| if let Command::Load { from, .. } = c { Some(from.clone()) } else { None })
}

#[test]
fn a_checkpoint_that_does_not_fit_ends_the_run_and_a_damaged_one_is_passed_over() {
    let saved = LoadFrom::Checkpoint("checkpoints/step-1".into());
    let fails = |desk: &mut Desk, fatal| {
        let conn = desk.conns[&LEARNER];
        let error = "the state has version 1 and seed 4, the run asks for 1 and 5".to_owned();
        desk.say(Event::LearnerFailed {
            conn,
            epoch: Epoch(1),
            what: "load version 1".into(),
            error,
            fatal,
            fault: Fault::Worker,
        })
    };
    let mut desk = Desk::new(plan(), past());
    assert_eq!(load_from(&desk.join(LEARNER)), Some(saved.clone()));
    let out = fails(&mut desk, true);
    assert!(failed(&out).is_some_and(|e| e.contains("seed 4")) && load_from(&out).is_none(), "{out:?}");

    let mut desk = Desk::new(plan(), past());
    desk.join(LEARNER);
    let conn = desk.conns[&LEARNER];
    let out = desk.say(Event::CheckpointDamaged { conn, version: PolicyVersion(1), why: "rng.json is missing".into() });
    assert_eq!(load_from(&out), Some(LoadFrom::Base));
    assert!(out.iter().any(|c| matches!(c, Command::Notice(n) if n.contains("rng.json is missing"))), "{out:?}");

    // A failure that may pass is no reason to give a good checkpoint up.
    let mut desk = Desk::new(plan(), past());
    desk.join(LEARNER);
    for _ in 0..2 {
        assert_eq!(load_from(&fails(&mut desk, false)), None, "not at once");
        assert_eq!(load_from(&desk.seconds(2)), Some(saved.clone()));
    }
    let out = fails(&mut desk, false);
    assert_eq!((load_from(&out), failed(&out)), (Some(LoadFrom::Base), None));
}

#[test]
fn leases_and_gradings_are_spread_over_all_workers() {
    let rollouts: Vec<WorkerId> = (0..3).map(|index| WorkerId { role: Role::Rollout, index }).collect();
    let rewards: Vec<WorkerId> = (0..2).map(|index| WorkerId { role: Role::Reward, index }).collect();
    let mut desk = Desk::new(Plan { rollout_workers: 3, ..plan() }, Past::default());
    desk.learner_up();
    let mut out = Vec::new();
    for worker in rewards.iter().chain(&rollouts) {
        out.extend(desk.join(*worker));
    }
    desk.publish(&out);
    let mut leases: Vec<Command> = rollouts.iter().flat_map(|worker| desk.swap(*worker)).collect();
    let (mut generated, mut scored) = (BTreeMap::<ConnId, u32>::new(), BTreeMap::<ConnId, u32>::new());
    while !leases.is_empty() {
        let mut asked = desk.generate(&leases);
        for command in leases.iter().chain(&asked) {
            match command {
                Command::Lease { conn, .. } if leases.contains(command) => *generated.entry(*conn).or_default() += 1,
                Command::Score { conn, .. } => *scored.entry(*conn).or_default() += 1,
                _ => {}
            }
        }
        let more = desk.score(&asked);
        asked.extend(more);
        leases = asked.into_iter().filter(|c| matches!(c, Command::Lease { .. })).collect();
    }
    let of = |counts: &BTreeMap<ConnId, u32>, workers: &[WorkerId]| -> Vec<u32> {
        workers.iter().map(|w| counts.get(&desk.conns[w]).copied().unwrap_or(0)).collect()
    };
    assert_eq!(of(&generated, &rollouts), [2, 2, 2]);
    assert_eq!(of(&scored, &rewards), [3, 3]);
}

/// A desk whose ledger has yet to write the leases that rollout-0 is to have.
fn recording(desk: &mut Desk) -> (ConnId, RecordId) {
    desk.learner_up();
    let out = desk.join(ROLLOUT);
    desk.publish(&out);
    let (conn, mut out) = (desk.conns[&ROLLOUT], Vec::new());
    desk.state.on_event(desk.now, Event::RolloutReady { conn, version: Some(PolicyVersion(0)), capacity: 4 }, &mut out);
    let record = out.iter().find_map(|c| if let Command::Record { id, .. } = c { Some(*id) } else { None });
    assert!(!desk.state.members().get(conn).unwrap().load.is_empty());
    (conn, record.expect("leases are recorded first"))
}

#[test]
fn a_lease_that_its_worker_cannot_take_any_more_leaves_its_hands_free() {
    let mut desk = Desk::new(plan(), Past::default());
    let (conn, record) = recording(&mut desk);
    desk.say(Event::RolloutReady { conn, version: None, capacity: 4 });
    let out = desk.say(Event::Recorded(record));
    assert!(out.iter().all(|c| !matches!(c, Command::Lease { .. })), "it has no weights: {out:?}");
    assert!(desk.state.members().get(conn).unwrap().load.is_empty());
    assert!(out.iter().any(|c| matches!(c, Command::Weights { .. })), "it is told of them again: {out:?}");
    let leases = desk.swap(ROLLOUT);
    assert_eq!(leases.iter().filter(|c| matches!(c, Command::Lease { .. })).count(), 4);
}

#[test]
fn one_that_was_idle_for_long_is_not_hung_while_its_lease_is_being_recorded() {
    let mut desk = Desk::new(plan(), Past::default());
    desk.say(Event::Standing(Standing { paused: true, rollout_workers: None }));
    desk.learner_up();
    let out = desk.join(ROLLOUT);
    desk.publish(&out);
    desk.swap(ROLLOUT);
    desk.seconds(2 * Deadlines::default().stall.as_secs());
    let mut out = Vec::new();
    desk.state.on_event(desk.now, Event::Standing(Standing { paused: false, rollout_workers: None }), &mut out);
    assert!(out.iter().any(|c| matches!(c, Command::Record { .. })), "{out:?}");
    desk.state.on_event(desk.now, Event::Tick, &mut out);
    assert_eq!(replaced(&out), None);
}

const FOLLOWER: WorkerId = WorkerId { role: Role::Learner, index: 1 };

/// The connections that are told where the lead is.
fn told(commands: &[Command], wanted: &str) -> Vec<ConnId> {
    let met = |c: &Command| match c {
        Command::Meet { conn, place } if place == wanted => Some(*conn),
        _ => None,
    };
    commands.iter().filter_map(met).collect()
}

#[test]
fn followers_find_the_lead_whoever_comes_first() {
    let mut desk = Desk::new(plan(), Past::default());
    assert!(told(&desk.join(FOLLOWER), "a").is_empty());
    desk.learner_up();
    let lead = desk.conns[&LEARNER];
    let out = desk.say(Event::Meeting { conn: lead, place: "a".into() });
    assert_eq!(told(&out, "a"), [desk.conns[&FOLLOWER]]);
    desk.lose(FOLLOWER);
    let out = desk.join(FOLLOWER);
    assert_eq!(told(&out, "a"), [desk.conns[&FOLLOWER]]);
    // The next lead is found at another place, and nowhere before it says so.
    desk.lose(LEARNER);
    let out = desk.join(LEARNER);
    assert!(out.iter().all(|c| !matches!(c, Command::Meet { .. })));
    let lead = desk.conns[&LEARNER];
    assert_eq!(told(&desk.say(Event::Meeting { conn: lead, place: "b".into() }), "b"), [desk.conns[&FOLLOWER]]);
}

#[test]
fn a_follower_is_not_the_learner_and_is_replaced_when_it_hangs() {
    let mut desk = Desk::new(plan(), Past::default());
    desk.learner_up();
    desk.moving = vec![LEARNER];
    let out = desk.join(FOLLOWER);
    assert!(out.iter().all(|c| !matches!(c, Command::Load { .. } | Command::Publish { .. })), "{out:?}");
    assert_eq!(desk.state.learner_version(), Some(PolicyVersion(0)), "the lead's");
    let stall = Deadlines::default().stall.as_secs();
    let out = desk.seconds(stall + 2);
    let replaced =
        out.iter().find_map(|c| if let Command::Replace { worker, why, .. } = c { Some((*worker, why)) } else { None });
    let (worker, why) = replaced.expect("a follower whose counter stands still is hung, whatever it has to do");
    assert!(worker == FOLLOWER && why.contains("made no progress"), "{why}");
    assert_eq!(desk.state.learner_version(), Some(PolicyVersion(0)), "the lead goes on");
}

#[test]
fn a_worker_that_was_stopped_while_no_coordinator_was_there_is_replaced() {
    let mut desk = Desk::new(plan(), Past::default());
    desk.say(Event::Known(vec![(LEARNER, 41), (ROLLOUT, 42), (REWARD, 43)]));
    desk.join(ROLLOUT);
    let silence = Deadlines::default().silence.as_secs();
    assert_eq!(replaced(&desk.seconds(silence + 1)), None, "they must find out first that their coordinator is another");
    desk.join(REWARD);
    let out = desk.seconds(silence);
    let replaced: Vec<_> = out
        .iter()
        .filter_map(|c| if let Command::Replace { worker, pid, .. } = c { Some((*worker, *pid)) } else { None })
        .collect();
    assert_eq!(replaced, [(LEARNER, 41)], "once, and nobody who came back");
    assert!(failed(&out).is_none());
}

#[test]
fn a_learner_that_hangs_at_a_job_of_an_earlier_connection_is_replaced() {
    let mut desk = Desk::new(plan(), Past::default());
    desk.learner_up();
    desk.lose(LEARNER);
    // It connects again and, still at its job, does not say what it holds; it beats.
    let conn = ConnId(desk.fresh());
    desk.conns.insert(LEARNER, conn);
    desk.moving = vec![LEARNER];
    desk.say(Event::Connected { conn, worker: LEARNER, incarnation: 0, pid: 1 });
    let stall = Deadlines::default().stall.as_secs();
    assert_eq!(replaced(&desk.seconds(2 * stall)), None, "its counter moves");
    desk.moving.clear();
    assert_eq!(replaced(&desk.seconds(stall + 2)), Some(LEARNER));
}
