//! Memory that runs out: the kernel kills one worker, whose agent says why; nobody else is touched.
use super::endless::Endless;
use super::figures::keep;
use super::{bench, trials};
use anyhow::{Context, Result, ensure};
use cohort_tests::cgroup::{HELD, MemoryGroup, mark};
use cohort_tests::hosts::with_weights;
use cohort_tests::launch::{Bench, PATIENCE, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Room above what the run holds, which other programs take bit by bit.
const ROOM: u64 = 12 * HELD;

/// Processes by name, and how each ended last.
fn children(bench: &Bench, name: &str) -> Result<BTreeMap<String, (Option<u64>, String)>> {
    let text = std::fs::read(bench.run_dir(name).join("agent.json"))?;
    let children: Vec<Value> = serde_json::from_slice(&text)?;
    let child = |child: &Value| {
        let name = child["name"].as_str().context("a child without a name")?.to_owned();
        Ok((name, (child["pid"].as_u64(), child["last_exit"].as_str().unwrap_or_default().to_owned())))
    };
    children.iter().map(child).collect()
}

#[test]
fn a_worker_that_the_kernel_kills_for_memory_is_replaced_and_the_cause_is_named() -> Result<()> {
    let (_folder, bench) = bench()?;
    let Some(group) = MemoryGroup::new()? else { return Ok(()) };
    let command = Endless::command(&bench, "tight", &["--workers", "rollout=2"]);
    let mut run = Endless::start_as(&bench, "tight", &mut group.within(&command))?;
    // A kill by hand is not called one for want of memory.
    until("everyone", PATIENCE, || Ok(children(&bench, "tight")?.values().all(|(pid, _)| pid.is_some()).then_some(())))?;
    let pid = children(&bench, "tight")?["rollout-1"].0.context("no process")?;
    cohort_tests::launch::signal(u32::try_from(pid)?, "KILL")?;
    let why = until("the killed worker's successor", PATIENCE, || {
        let now = children(&bench, "tight")?;
        Ok((now["rollout-1"].0.is_some_and(|now| now != pid)).then(|| now["rollout-1"].1.clone()))
    })?;
    ensure!(why.contains("signal 9") && !why.contains("out of memory"), "{why}");
    let mut worst = Duration::ZERO;
    let rounds = trials(1);
    for victim in ["rollout-0", "reward-0", "learner-0"].into_iter().cycle().take(3 * rounds) {
        let before = until("everyone", PATIENCE, || {
            let now = children(&bench, "tight")?;
            Ok(now.values().all(|(pid, _)| pid.is_some()).then_some(now))
        })?;
        // Who has only just begun does not hold yet what it will.
        until("both rollout workers with weights", PATIENCE, || Ok((with_weights(&bench, "tight")?.len() >= 2).then_some(())))?;
        run.progress(2, PATIENCE)?;
        let pid = before[victim].0.context("no process")?;
        mark(u32::try_from(pid)?)?;
        group.limit(Some(group.anonymous()? + ROOM))?;
        let begun = Instant::now();
        let mut held = Vec::new();
        until("the victim's end", PATIENCE, || {
            held.push(group.hold()?);
            Ok((children(&bench, "tight")?[victim].0 != Some(pid)).then_some(()))
        })?;
        group.limit(None)?;
        drop(held);
        let now = until("the victim's successor", PATIENCE, || {
            let now = children(&bench, "tight")?;
            Ok(now[victim].0.is_some().then_some(now))
        })?;
        let why = &now[victim].1;
        ensure!(
            why.contains("signal 9") && why.contains("out of memory (control group") && why.contains("MiB"),
            "{victim}: {why}"
        );
        for (other, (pid, _)) in before.iter().filter(|(name, _)| *name != victim) {
            ensure!(now[other].0 == *pid, "{other} was not to be touched when {victim} was killed: {now:?}");
        }
        run.progress(2, PATIENCE)?;
        worst = worst.max(begun.elapsed());
    }
    let steps = run.end_as_if_undisturbed(&[])?;
    keep("memory", &json!({ "killed": 3 * rounds, "steps": steps, "longest_to_progress_s": worst.as_secs_f64() }))
}
