//! Hosts that sample with other numerics than the run's: sent away unless the run corrects for them, and corrected for then.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::hosts::{listens, token};
use cohort_tests::launch::{Bench, Ended, GROUPS, PATIENCE, Running, finish, metric, start, until, wait};
use std::path::Path;

const STEPS: u64 = 4;
/// The head node has no sampler of its own: every token comes from the host that joins.
const ELSEWHERE: [&str; 5] = ["--processes", "--workers", "rollout=0", "--set", "cluster.listen=127.0.0.1:0"];
const CORRECT: [&str; 2] = ["--set", r#"rollout.other_numerics="correct""#];

fn host(bench: &Bench, name: &str, folder: &Path, with: &str) -> Result<Running> {
    let (head, secret) = (listens(bench, name)?, folder.join(format!("{name}-token")));
    token(bench, name, &secret)?;
    let mut command = bench.command("join");
    command.arg(head).arg("--dir").arg(bench.run_dir(&format!("{name}-host"))).arg("--token-file").arg(secret);
    start(command.args(["--sample-with", with]))
}

/// A run whose tokens all come from one host that samples with `with`.
fn run(name: &str, bench: &Bench, folder: &Path, with: &str, correction: &[&str]) -> Result<Ended> {
    let args = [&ELSEWHERE[..], &CORRECT, correction].concat();
    let run = start(&mut bench.launch(name, &args))?;
    let host = host(bench, name, folder, with)?;
    until("a corrected sampler in the status", PATIENCE, || {
        let status = bench.status(name)?.unwrap_or_default();
        let numerics = status["actors"].as_array().into_iter().flatten().find_map(|actor| actor["numerics"].as_str());
        Ok(numerics.map(str::to_owned))
    })?;
    let ended = wait(run, PATIENCE)?;
    ensure!(ended.code == Some(0), "exit code {:?}: {}", ended.code, ended.stderr);
    let left = wait(host, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    Ok(ended)
}

#[test]
fn a_sampler_with_other_numerics_is_sent_away_with_both_named() -> Result<()> {
    let (folder, bench) = bench()?;
    let _run = start(&mut bench.launch("strict", &ELSEWHERE))?;
    let away = wait(host(&bench, "strict", folder.path(), "dtype=bf16")?, PATIENCE)?;
    ensure!(away.code == Some(6) && away.stderr.contains("run numerics differ"), "{away:?}");
    for named in ["dtype=f32", "dtype=bf16", "rollout.other_numerics"] {
        ensure!(away.stderr.contains(named), "{named} is not in {}", away.stderr);
    }
    // Nobody is let in without a correction.
    let refused = finish(&mut bench.launch("uncorrected", &[&ELSEWHERE[..], &CORRECT].concat()))?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("training.correction.type"), "{refused:?}");
    Ok(())
}

#[test]
fn a_corrected_samplers_groups_count_as_inexact_and_its_ratio_is_used() -> Result<()> {
    let (folder, bench) = bench()?;
    let tis = run("tis", &bench, folder.path(), "dtype=bf16", &["--set", r#"training.correction.type="tis""#])?;
    ensure!(tis.number("logprob_tokens_compared")? == 0, "no token is promised to be the learner's: {:?}", tis.report);
    ensure!(tis.field("groups")?["inexact"] == STEPS * GROUPS, "{:?}", tis.report);
    ensure!(tis.stderr.contains("dtype=bf16") && tis.stderr.contains("corrected for"), "{}", tis.stderr);
    bench.balanced("tis", STEPS * GROUPS)?;
    let dir = bench.run_dir("tis");
    for (step, groups) in metric(&dir, "exactness/inexact_groups")?.into_iter().enumerate() {
        let apart = metric(&dir, "sampling/sampling_logp_difference/mean")?[step];
        ensure!(groups == GROUPS as f64 && apart > 0.0 && apart < 0.1, "step {step}: {groups} {apart}");
    }
    let shown = bench.command("status").arg(&dir).output()?;
    ensure!(String::from_utf8_lossy(&shown.stdout).contains("16 consumed (16 inexact, corrected for)"), "{shown:?}");
    // The same tokens in the first step, but only those count whose ratio is almost exactly 1: hardly any gradient is left.
    let narrow = r#"training.correction={type="mis",min=0.9999999,max=1.0000001}"#;
    run("mis", &bench, folder.path(), "dtype=bf16", &["--set", narrow])?;
    let first = |name| metric(&bench.run_dir(name), "grad_norm")?.first().copied().context("no step");
    let (whole, masked) = (first("tis")?, first("mis")?);
    ensure!(masked < whole / 2.0, "masked {masked}, whole {whole}: the ratio of sampler and learner is not used");
    Ok(())
}

/// A host that computes with the other engine: its weights come over the same ring.
#[test]
fn another_engine_can_sample_for_a_native_run() -> Result<()> {
    let (folder, bench) = bench()?;
    let ended = run("candle", &bench, folder.path(), "engine=candle", &["--set", r#"training.correction.type="tis""#])?;
    ensure!(ended.field("groups")?["inexact"] == STEPS * GROUPS, "{:?}", ended.report);
    bench.balanced("candle", STEPS * GROUPS)
}
