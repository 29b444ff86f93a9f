//! Asynchronous runs: what they consumed is recorded and replays to the same bits, whoever was killed; the accounts balance;
//! a journal that was changed or trimmed is noticed.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::launch::{Bench, Ended, GROUPS, PATIENCE, finish, metric, start, until};
use rusqlite::Connection;
use serde_json::Value;

const STEPS: u64 = 8;
const MAX_STALENESS: u64 = 2;

/// The tiny run, with groups generated ahead of the learner.
fn options<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    let own = ["--steps", "8", "--set", "training.max_staleness=2", "--set", "training.correction.type=\"tis\""];
    [&own, extra].concat()
}

/// A finished run that was exact, balanced and never too stale; its weights.
fn sound(bench: &Bench, name: &str, ended: &Ended) -> Result<String> {
    ensure!(ended.code == Some(0), "{name}: exit code {:?}: {}", ended.code, ended.stderr);
    ensure!(ended.field("max_logprob_diff")? == 0.0, "{name}: {:?}", ended.report);
    ensure!(ended.number("staleness_max")? <= MAX_STALENESS, "{name}: {:?}", ended.report);
    bench.balanced(name, STEPS * GROUPS)?;
    let (counted, audited) = (ended.field("groups")?["dropped"].clone(), bench.audit(name)?["dropped"].clone());
    ensure!(counted == audited, "{name}: the report counts {counted}, the audit {audited}");
    Ok(ended.field("weights_sha256")?.as_str().context("no hash")?.to_owned())
}

/// `cluster replay`: its report, or what it said and the code it ended with.
pub(super) fn replay(bench: &Bench, name: &str, args: &[&str]) -> Result<std::result::Result<Value, (Option<i32>, String)>> {
    let output = bench.command("replay").arg(bench.run_dir(name)).arg("--json").args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Ok(Err((output.status.code(), said)));
    }
    let line = String::from_utf8(output.stdout)?;
    Ok(Ok(serde_json::from_str(line.lines().last().unwrap_or_default())?))
}

fn replays(bench: &Bench, name: &str, weights: &str) -> Result<()> {
    let report = replay(bench, name, &[])?.map_err(|(code, said)| anyhow::anyhow!("{name}: {code:?}: {said}"))?;
    ensure!(report["replayed"] == STEPS && report["from"] == 0 && report["weights_sha256"] == weights, "{name}: {report}");
    Ok(())
}

#[test]
fn three_workers_ahead_of_the_learner_replay_to_the_same_bits() -> Result<()> {
    let (_folder, bench) = bench()?;
    for (name, extra) in
        [("one-process", &["--workers", "rollout=3"][..]), ("processes", &["--processes", "--workers", "rollout=3,reward=2"])]
    {
        let weights = sound(&bench, name, &finish(&mut bench.launch(name, &options(extra)))?)?;
        replays(&bench, name, &weights)?;
        let run = bench.run_dir(name);
        for idle in metric(&run, "perf/learner_idle_fraction")?.into_iter().chain(metric(&run, "perf/rollout_idle_fraction")?) {
            ensure!((0.0..=1.0).contains(&idle), "{name}: {idle}");
        }
        ensure!(metric(&run, "staleness/max")?.iter().any(|&s| s > 0.0), "{name}: some group was begun ahead");
        ensure!(metric(&run, "exactness/stale_tokens")?.iter().any(|&n| n > 0.0), "{name}: stale tokens are counted apart");
    }
    // A part of it, and what is not there.
    let part = replay(&bench, "one-process", &["--to", "3"])?.map_err(|e| anyhow::anyhow!("{e:?}"))?;
    ensure!(part["replayed"] == 3, "{part}");
    let beyond = replay(&bench, "one-process", &["--to", "9"])?;
    ensure!(matches!(&beyond, Err((Some(4), said)) if said.contains("8 steps are")), "{beyond:?}");
    Ok(())
}

#[test]
fn whoever_is_killed_nothing_is_lost_and_the_record_replays() -> Result<()> {
    let (_folder, bench) = bench()?;
    for point in ["mid-decode", "trajectory-sent", "intent-committed", "learner-backward", "publish"] {
        let mut launch = bench.launch(point, &options(&["--processes", "--workers", "rollout=3"]));
        let armed = format!("{point}:3");
        bench.arm(&mut launch, &armed)?;
        let ended = finish(&mut launch)?;
        let weights = sound(&bench, point, &ended)?;
        ensure!(bench.crashed(&armed)? && ended.number("restarts")? >= 1, "{point} was hit");
        replays(&bench, point, &weights)?;
    }
    // The agent and with it everything, at once; then a resume.
    let agent = start(&mut bench.launch("killed", &options(&["--processes", "--workers", "rollout=2"])))?;
    let metrics = bench.run_dir("killed").join("metrics.jsonl");
    until("committed step", PATIENCE, || {
        Ok((std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() > 1).then_some(()))
    })?;
    drop(agent);
    let weights = sound(&bench, "killed", &finish(&mut bench.resume("killed", &[]))?)?;
    replays(&bench, "killed", &weights)
}

#[test]
fn a_changed_or_trimmed_journal_is_noticed() -> Result<()> {
    let (_folder, bench) = bench()?;
    sound(&bench, "run", &finish(&mut bench.launch("run", &options(&["--workers", "rollout=3"])))?)?;
    let run = bench.run_dir("run");
    let segment = run.join("segments/000001.seg");
    let whole = std::fs::read(&segment)?;
    let refused = |why: &str, code: i32| -> Result<()> {
        match replay(&bench, "run", &[])? {
            Err((got, said)) if got == Some(code) && said.contains(why) => Ok(()),
            other => anyhow::bail!("expected {code} and {why:?}: {other:?}"),
        }
    };
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    std::fs::write(&segment, changed)?;
    refused("is damaged", 5)?;
    std::fs::remove_file(&segment)?;
    refused("is gone, and no checkpoint", 5)?;
    std::fs::write(&segment, &whole)?;

    let ledger = Connection::open(run.join("ledger.sqlite"))?;
    let digest: String = ledger.query_row("SELECT weights_digest FROM commits WHERE step = 5", [], |row| row.get(0))?;
    ledger.execute("UPDATE commits SET weights_digest = '0123456789abcdef' WHERE step = 5", [])?;
    refused("table commits", 5)?;
    ledger.execute("UPDATE commits SET weights_digest = ? WHERE step = 5", [&digest])?;

    // What the first three steps consumed is trimmed away: a checkpoint covers it.
    let groups: String =
        ledger.query_row("SELECT json_group_array(json(groups)) FROM intents WHERE step <= 3", [], |row| row.get(0))?;
    let groups: Vec<Vec<u64>> = serde_json::from_str(&groups)?;
    for group in groups.into_iter().flatten() {
        ledger.execute("DELETE FROM trajectories WHERE grp = ?", [group.cast_signed()])?;
    }
    let report = replay(&bench, "run", &[])?.map_err(|e| anyhow::anyhow!("{e:?}"))?;
    ensure!(report["from"] == 4 && report["replayed"] == 4, "{report}");
    Ok(())
}

/// Rollout without a learner, then a learner without rollout workers: the step that a run takes first.
#[test]
fn groups_in_a_file_give_the_step_of_a_run() -> Result<()> {
    let (_folder, bench) = bench()?;
    let weights = finish(&mut bench.launch("run", &["--steps", "1"]))?.weights()?;
    let [_, config] = bench.program_and_config();
    let (file, out) = (bench.run_dir("groups.jsonl"), bench.run_dir("learned"));
    let sampled = finish(bench.command("sample").arg(&config).args(["--groups", "6", "--json", "--out"]).arg(&file))?;
    ensure!(sampled.code == Some(0) && sampled.number("samples")? == 24, "{sampled:?}");
    let learned = finish(bench.command("learn").arg(&file).arg(&config).args(["--steps", "1", "--json", "--out"]).arg(&out))?;
    ensure!(learned.code == Some(0), "{learned:?}");
    ensure!(learned.field("weights_sha256")? == weights.as_str() && learned.number("groups_left")? == 2, "{learned:?} {weights}");
    ensure!(metric(&out, "exactness/logp_difference_max")? == [0.0]);
    let short = finish(bench.command("learn").arg(&file).arg(&config).args(["--steps", "2", "--out"]).arg(&out))?;
    ensure!(short.code == Some(4) && short.stderr.contains("has 6 groups, 2 steps of 4 take 8"), "{short:?}");
    Ok(())
}

#[test]
fn kept_memory_needs_a_correction() -> Result<()> {
    let (_folder, bench) = bench()?;
    let keep = ["--steps", "8", "--set", "training.max_staleness=2", "--set", "training.keep_stale_kv=true"];
    let refused = finish(&mut bench.launch("refused", &keep))?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("training.correction"), "{refused:?}");
    let kept = options(&["--workers", "rollout=3", "--set", "training.keep_stale_kv=true"]);
    let weights = sound(&bench, "kept", &finish(&mut bench.launch("kept", &kept))?)?;
    replays(&bench, "kept", &weights)
}
