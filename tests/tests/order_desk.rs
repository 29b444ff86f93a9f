//! What `cluster launch` does without a file: the embedded model learns the order desk whatever the seed, and learns nothing
//! from rewards that mean nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use anyhow::{Context, Result};
use cohort_tests::launch::{Bench, Ended, metric, start, wait};
use std::process::Command;
use std::time::Duration;

/// Far longer than a run takes on two busy cores.
const PATIENCE: Duration = Duration::from_secs(900);

fn bench() -> Result<(tempfile::TempDir, Bench)> {
    let folder = tempfile::tempdir()?;
    let bench = Bench::new(env!("CARGO_BIN_EXE_cluster_under_test"), folder.path())?;
    Ok((folder, bench))
}

/// The default launch.
fn launch(bench: &Bench, name: &str, args: &[&str]) -> Command {
    let mut command = bench.command("launch");
    command.arg("--run-dir").arg(bench.run_dir(name)).arg("--json").args(args);
    command
}

fn number(ended: &Ended, name: &str) -> Result<f64> {
    ended.field(name)?.as_f64().with_context(|| format!("{name} is no number: {:?}", ended.report))
}

/// Held-out before and after of one part of the reward.
fn part(ended: &Ended, name: &str) -> Result<(f64, f64)> {
    let parts: Vec<(String, f64, f64)> = serde_json::from_value(ended.field("heldout_parts")?.clone())?;
    let found = parts.iter().find(|(part, ..)| part == name).map(|(_, before, after)| (*before, *after));
    found.with_context(|| format!("no part {name} in {parts:?}"))
}

#[test]
fn the_default_run_learns_its_task_whatever_the_seed() -> Result<()> {
    let (_folder, bench) = bench()?;
    let mut weights = Vec::new();
    for seed in 1..=5 {
        let name = format!("seed-{seed}");
        let ended = wait(start(&mut launch(&bench, &name, &["--seed", &seed.to_string(), "--steps", "80"]))?, PATIENCE)?;
        let of = |name: &str| number(&ended, name);
        let before = (of("heldout_before")?, of("heldout_greedy_before")?);
        let after = (of("heldout_after")?, of("heldout_greedy_after")?);
        println!("seed {seed}: {before:?} -> {after:?}, {} tokens compared", of("logprob_tokens_compared")?);
        assert!(before.0 <= 0.3 && before.1 <= 0.3, "seed {seed} begins at {before:?}");
        assert!(after.0 >= 0.9 && after.1 >= 0.9, "seed {seed} ends at {after:?}");
        assert_eq!(of("max_logprob_diff")?, 0.0, "seed {seed}");
        assert!(of("logprob_tokens_compared")? >= 10_000.0, "seed {seed}");
        assert!(part(&ended, "order_desk/format")?.1 > 0.9, "the format is reported beside the answer");
        bench.balanced(&name, 80 * 16)?;
        weights.push(ended.weights()?);
    }
    weights.sort();
    weights.dedup();
    assert_eq!(weights.len(), 5, "each seed is a run of its own");
    Ok(())
}

/// Tokens are drawn in int8 from a policy that is learnt in f32: corrected for, that costs nothing that can be seen.
#[test]
fn rollouts_in_int8_teach_the_task_too() -> Result<()> {
    let (_folder, bench) = bench()?;
    let int8 = ["--set", r#"rollout.quantization="int8""#, "--set", r#"training.correction.type="tis""#];
    let quick = ["--seed", "1", "--steps", "30", "--set", "training.eval.prompts=64", "--set", "training.eval.samples=2"];
    let ended = wait(start(&mut launch(&bench, "int8", &[&int8[..], &quick].concat()))?, PATIENCE)?;
    let (before, after) = (number(&ended, "heldout_before")?, number(&ended, "heldout_after")?);
    let difference = metric(&bench.run_dir("int8"), "sampling/sampling_logp_difference/mean")?;
    println!("int8: {before} -> {after}, mean log-prob difference of the steps {difference:?}");
    assert!(before <= 0.3 && after >= 0.6, "{before} -> {after}");
    assert!(difference.iter().all(|mean| *mean > 0.0 && *mean < 0.1), "{difference:?}");
    assert_eq!(number(&ended, "logprob_tokens_compared")?, 0.0, "none of them is promised to be the learner's");
    Ok(())
}

#[test]
fn rewards_that_mean_nothing_teach_nothing() -> Result<()> {
    let (_folder, bench) = bench()?;
    let rewards = r#"rewards.parts=[{type="random"},{type="order_desk",weight=0.0}]"#;
    let ended = wait(start(&mut launch(&bench, "random", &["--steps", "40", "--set", rewards]))?, PATIENCE)?;
    let (before, after) = part(&ended, "order_desk")?;
    println!("random rewards: {before} -> {after}");
    assert!(before <= 0.3 && after <= before + 0.1, "{before} -> {after}");
    Ok(())
}
