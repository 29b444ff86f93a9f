//! The promise of synchronous runs: the final weights are the same bits for any number of workers and threads, in one
//! process or in many, killed at any named point or not, resumed or not. After each run the accounts balance.
use super::bench;
use anyhow::{Result, ensure};
use cohort_tests::launch::{GROUPS, PATIENCE, finish, metric, processes_of, start, until};
use rusqlite::Connection;
use std::path::Path;
use std::time::Duration;

const CONSUMED: u64 = 4 * GROUPS;
/// Steps of runs in which every worker is to have a share, those that start last too.
const LONG: &str = "30";
const LONG_CONSUMED: u64 = 30 * GROUPS;

/// Workers of a role that had a hand in a consumed group.
fn had_a_hand(run: &Path, column: &str, table: &str) -> Result<i64> {
    let ledger = Connection::open(run.join("ledger.sqlite"))?;
    Ok(ledger.query_row(&format!("SELECT count(DISTINCT {column}) FROM {table}"), [], |row| row.get(0))?)
}

#[test]
fn workers_threads_and_processes_do_not_change_a_bit() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("one", &["--steps", LONG, "--threads", "1"]))?.weights()?;
    bench.balanced("one", LONG_CONSUMED)?;
    let kinds: [(&str, &[&str]); 4] = [
        ("three", &["--workers", "rollout=3,reward=2"]),
        ("two-threads", &["--threads", "2"]),
        ("processes", &["--processes"]),
        ("many-processes", &["--processes", "--workers", "rollout=3,reward=2", "--threads", "2"]),
    ];
    for (name, extra) in kinds {
        let options = [&["--steps", LONG], extra].concat();
        assert_eq!(finish(&mut bench.launch(name, &options))?.weights()?, reference, "{name}");
        bench.balanced(name, LONG_CONSUMED)?;
    }
    assert_eq!(had_a_hand(&bench.run_dir("many-processes"), "worker", "trajectories")?, 3, "every rollout worker had its share");
    assert_eq!(had_a_hand(&bench.run_dir("many-processes"), "worker", "scores")?, 2, "every reward worker had its share");
    let other = finish(&mut bench.launch("other", &["--steps", LONG, "--seed", "7"]))?.weights()?;
    assert_ne!(other, reference, "another seed is another run");
    let hashed = bench.command("hash").arg(bench.run_dir("one").join("checkpoints/step-30")).arg("--json").output()?;
    let hashed: serde_json::Value = serde_json::from_slice(&hashed.stdout)?;
    assert_eq!(hashed["weights"], reference.as_str(), "`hash` and `launch` name the same weights");
    Ok(())
}

#[test]
fn what_sampling_computed_is_not_computed_again_and_does_not_change_a_bit() -> Result<()> {
    let (_folder, bench) = bench()?;
    let run = |name: &str, settings: [&str; 2]| -> Result<(String, Vec<f64>)> {
        let options = ["--steps", "12", "--workers", "rollout=2", "--set", settings[0], "--set", settings[1]];
        let weights = finish(&mut bench.launch(name, &options))?.weights()?;
        Ok((weights, metric(&bench.run_dir(name), "perf/recalled_tokens")?))
    };
    let (reference, recalled) = run("computed", ["training.reuse_sampling_mb=0", "training.recheck_interval=5"])?;
    assert_eq!(recalled, [0.0; 12]);
    let (weights, recalled) = run("recalled", ["training.reuse_sampling_mb=64", "training.recheck_interval=5"])?;
    assert_eq!(weights, reference);
    let computed: Vec<usize> = (1..=12).zip(&recalled).filter(|(_, tokens)| **tokens == 0.0).map(|(step, _)| step).collect();
    assert_eq!(computed, [5, 10], "no other step than those to be rechecked: {recalled:?}");
    let (weights, recalled) = run("part", ["training.reuse_sampling_mb=1", "training.micro_batch_tokens=100"])?;
    let (reference, _) = run("parts", ["training.reuse_sampling_mb=0", "training.micro_batch_tokens=100"])?;
    assert_eq!(weights, reference, "with {recalled:?} tokens recalled");
    Ok(())
}

#[test]
fn a_kill_at_every_named_point_does_not_change_a_bit() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &[]))?.weights()?;
    let points = ["mid-decode", "trajectory-sent", "score-sent", "intent-committed", "learner-backward", "checkpoint", "publish"];
    for point in points {
        let mut launch = bench.launch(point, &["--processes", "--workers", "rollout=2"]);
        let armed = format!("{point}:2");
        bench.arm(&mut launch, &armed)?;
        let ended = finish(&mut launch)?;
        assert_eq!(ended.weights()?, reference, "{point}");
        assert!(ended.number("restarts")? >= 1, "{point}: somebody was killed and started again");
        assert!(bench.crashed(&armed)?, "{point} was hit");
        let elapsed = metric(&bench.run_dir(point), "time/elapsed_s")?;
        ensure!(elapsed.is_sorted(), "{point}: seconds since the launch, whoever coordinates it: {elapsed:?}");
        bench.balanced(point, CONSUMED)?;
    }
    Ok(())
}

#[test]
fn the_agents_death_takes_everything_with_it_and_a_resume_ends_in_the_same_bits() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &[]))?.weights()?;
    let agent = start(&mut bench.launch("killed", &["--processes"]))?;
    let metrics = bench.run_dir("killed").join("metrics.jsonl");
    // The first step is committed, the last is not.
    until("committed step", PATIENCE, || {
        let lines = std::fs::read_to_string(&metrics).unwrap_or_default().lines().count();
        Ok((lines > 0).then_some(()))
    })?;
    // Killed with SIGKILL.
    drop(agent);
    let run = bench.run_dir("killed");
    until("end of the orphans", Duration::from_secs(5), || Ok(processes_of(&run)?.is_empty().then_some(())))?;
    let refused = finish(&mut bench.launch("killed", &[]))?;
    ensure!(refused.code == Some(5), "a run directory in use is not taken: {refused:?}");
    let resumed = finish(&mut bench.resume("killed", &[]))?;
    assert_eq!(resumed.weights()?, reference);
    bench.balanced("killed", CONSUMED)
}
