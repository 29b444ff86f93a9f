//! Groups that are lost in the middle: what their workers had said is not said again, and the bits are the same.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::launch::{Bench, GROUPS, PATIENCE, finish, signal, start, until, wait};
use rusqlite::{Connection, OpenFlags};

/// Rollout worker 0 holds what it has generated back for so long.
const HELD_BACK: (&str, &str) = ("COHORT_ROLLOUT_DELAY_MS", "0:5000");

/// Tokens with which leases went on, from the coordinators' logs.
fn taken_over(bench: &Bench, run: &str) -> Result<Vec<u64>> {
    let mut tokens = Vec::new();
    for attempt in std::fs::read_dir(bench.run_dir(run).join("logs"))? {
        for file in std::fs::read_dir(attempt?.path())? {
            let path = file?.path();
            if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("coordinator")) {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            for line in text.lines().filter(|line| line.contains(" goes on with ")) {
                let (_, after) = line.split_once(" after the ").with_context(|| line.to_owned())?;
                tokens.push(after.split(' ').next().unwrap_or_default().parse()?);
            }
        }
    }
    Ok(tokens)
}

#[test]
fn what_a_killed_worker_had_handed_in_is_not_generated_again() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", "1"]))?.weights()?;
    let mut launch = bench.launch("lost", &["--processes", "--workers", "rollout=2", "--steps", "1"]);
    launch.env(HELD_BACK.0, HELD_BACK.1);
    bench.arm(&mut launch, "handed-in:1")?;
    let ended = finish(&mut launch)?;
    assert_eq!(ended.weights()?, reference);
    ensure!(bench.crashed("handed-in:1")?, "a worker was killed after it had handed something in");
    let tokens = taken_over(&bench, "lost")?;
    // It held prompts of an evaluation or groups, generated to their ends.
    ensure!(!tokens.is_empty(), "what it had handed in was said anew");
    bench.balanced("lost", GROUPS)
}

#[test]
fn workers_hand_over_to_the_next_coordinator_what_they_had_begun_under_the_last() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", "1"]))?.weights()?;
    let mut launch = bench.launch("handed-over", &["--processes", "--steps", "1"]);
    let run = start(launch.env(HELD_BACK.0, HELD_BACK.1))?;
    let ledger = bench.run_dir("handed-over").join("ledger.sqlite");
    until("a lease", PATIENCE, || {
        let Ok(ledger) = Connection::open_with_flags(&ledger, OpenFlags::SQLITE_OPEN_READ_ONLY) else { return Ok(None) };
        let leases: i64 = ledger.query_row("SELECT count(*) FROM leases", [], |row| row.get(0)).unwrap_or(0);
        Ok((leases > 0).then_some(()))
    })?;
    let coordinator = bench.process_of("handed-over", "coordinator-0")?.context("a coordinator")?;
    signal(coordinator, "KILL")?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    let tokens = taken_over(&bench, "handed-over")?;
    ensure!(!tokens.is_empty(), "the groups that the worker held were begun anew");
    bench.balanced("handed-over", GROUPS)
}
