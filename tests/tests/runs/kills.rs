//! Processes that are killed, stopped or told to leave from outside, by the process that `status` names.
use super::bench;
use anyhow::{Result, ensure};
use cohort_tests::launch::{Bench, GROUPS, PATIENCE, Running, finish, signal, start, until, wait};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds, so that whoever is to be killed is met alive.
const STEPS: &str = "60";
const CONSUMED: u64 = 60 * GROUPS;
/// Enough for five kills, one after the other.
const MANY_STEPS: &str = "200";
const MANY_CONSUMED: u64 = 200 * GROUPS;

/// The process of an actor once the run has committed a step; `None` where the run has ended before.
fn under_way(bench: &Bench, run: &mut Running, name: &str, actor: &str) -> Result<Option<u32>> {
    until("process", PATIENCE, || {
        if run.has_ended()? {
            return Ok(Some(None));
        }
        let begun = bench.status(name)?.is_some_and(|status| status["step"].as_u64() > Some(0));
        Ok(if begun { bench.process_of(name, actor)?.map(Some) } else { None })
    })
}

#[test]
fn a_kill_of_any_process_at_any_moment_does_not_change_a_bit() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", MANY_STEPS]))?.weights()?;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    println!("moments drawn from {seed}");
    let mut draw = seed | 1;
    let mut moment = || {
        draw ^= draw << 13;
        draw ^= draw >> 17;
        draw ^= draw << 5;
        Duration::from_millis(u64::from(draw % 150))
    };
    let options = ["--processes", "--workers", "rollout=2,reward=1", "--steps", MANY_STEPS];
    let mut run = start(&mut bench.launch("killed", &options))?;
    let mut killed = 0;
    for actor in ["rollout-0", "reward-0", "learner-0", "coordinator-0", "rollout-1"] {
        let Some(pid) = under_way(&bench, &mut run, "killed", actor)? else { break };
        std::thread::sleep(moment());
        signal(pid, "KILL")?;
        killed += 1;
        until("end of the killed process", PATIENCE, || {
            Ok((run.has_ended()? || bench.process_of("killed", actor)? != Some(pid)).then_some(()))
        })?;
    }
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference, "moments drawn from {seed}");
    ensure!(killed == 5 && ended.number("restarts")? >= killed, "{killed} killed; {:?}", ended.report);
    bench.balanced("killed", MANY_CONSUMED)
}

#[test]
fn a_worker_that_somebody_tells_to_leave_is_started_again() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", STEPS]))?.weights()?;
    let mut run = start(&mut bench.launch("told", &["--processes", "--steps", STEPS]))?;
    for actor in ["rollout-0", "reward-0", "learner-0"] {
        let Some(pid) = under_way(&bench, &mut run, "told", actor)? else { break };
        signal(pid, "TERM")?;
    }
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    ensure!(ended.number("restarts")? >= 3, "{:?}", ended.report);
    bench.balanced("told", CONSUMED)
}

#[test]
fn a_coordinator_that_stands_still_is_replaced() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", STEPS]))?.weights()?;
    let mut launch = bench.launch("stopped", &["--processes", "--steps", STEPS]);
    let mut run = start(launch.env("COHORT_COORDINATOR_SILENCE_MS", "3000"))?;
    let pid = under_way(&bench, &mut run, "stopped", "coordinator-0")?;
    signal(pid.expect("the run goes on"), "STOP")?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    ensure!(ended.number("restarts")? >= 1, "{:?}", ended.report);
    bench.balanced("stopped", CONSUMED)
}

/// A stopped process keeps its place and says nothing: its connection ends, it does not come back, it is replaced.
#[test]
fn workers_that_stand_still_are_replaced() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", MANY_STEPS]))?.weights()?;
    let mut run = start(&mut bench.launch("stopped", &["--processes", "--steps", MANY_STEPS]))?;
    for actor in ["learner-0", "rollout-0", "reward-0"] {
        let pid = under_way(&bench, &mut run, "stopped", actor)?;
        signal(pid.expect("the run goes on"), "STOP")?;
        until("its successor", PATIENCE, || {
            let now = bench.process_of("stopped", actor)?;
            Ok((run.has_ended()? || now.is_some() && now != pid).then_some(()))
        })?;
    }
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    ensure!(ended.number("restarts")? >= 3, "{:?}", ended.report);
    bench.balanced("stopped", MANY_CONSUMED)
}

#[test]
fn a_learner_rank_that_stands_still_holds_nobody_up() -> Result<()> {
    let (_folder, bench) = bench()?;
    let options = ["--steps", STEPS, "--set", "training.logical_shards=2"];
    let reference = finish(&mut bench.launch("calm", &options))?.weights()?;
    let ranks = [&options[..], &["--processes", "--workers", "learner=2"]].concat();
    let mut run = start(&mut bench.launch("stopped", &ranks))?;
    let pid = under_way(&bench, &mut run, "stopped", "learner-1")?;
    signal(pid.expect("the run goes on"), "STOP")?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference, "the lead takes the steps alone, to the same bits");
    bench.balanced("stopped", CONSUMED)
}

#[test]
fn a_drained_run_says_so_and_goes_on_to_the_same_bits() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", STEPS]))?.weights()?;
    for (name, killed) in [("drained", false), ("killed", true)] {
        let mut run = start(&mut bench.launch(name, &["--processes", "--steps", STEPS]))?;
        let coordinator = under_way(&bench, &mut run, name, "coordinator-0")?;
        signal(run.pid(), "TERM")?;
        if killed {
            // The next one is told to drain too. The kill may come too late for this one.
            coordinator.map(|pid| signal(pid, "KILL")).transpose()?;
        }
        let drained = wait(run, PATIENCE)?;
        ensure!(drained.code == Some(20) && drained.number("steps")? < 60, "{name}: {drained:?}");
        let resumed = finish(&mut bench.resume(name, &[]))?;
        assert_eq!(resumed.weights()?, reference, "{name}");
        bench.balanced(name, CONSUMED)?;
    }
    Ok(())
}
