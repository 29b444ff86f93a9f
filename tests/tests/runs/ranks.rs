//! A learner of several ranks: the same bits for any number of them, in one process or in many, killed at any named point.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::golden;
use cohort_tests::launch::{GROUPS, finish, start, wait};
use std::time::Duration;

const CONSUMED: u64 = 4 * GROUPS;
/// Part of a run's numerics: what the ranks share.
const SHARDS: [&str; 2] = ["--set", "training.logical_shards=4"];

#[test]
fn ranks_do_not_change_a_bit() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("one", &SHARDS))?.weights()?;
    let kinds: [(&str, &[&str]); 3] = [
        ("two", &["--workers", "learner=2"]),
        ("two-processes", &["--processes", "--workers", "learner=2"]),
        ("four-processes", &["--processes", "--workers", "learner=4,rollout=2"]),
    ];
    for (name, extra) in kinds {
        assert_eq!(finish(&mut bench.launch(name, &[&SHARDS[..], extra].concat()))?.weights()?, reference, "{name}");
        bench.balanced(name, CONSUMED)?;
    }
    let replayed = bench.command("replay").arg(bench.run_dir("four-processes")).output()?;
    ensure!(replayed.status.success(), "one rank takes the steps of four again: {replayed:?}");
    let other = finish(&mut bench.launch("other", &[]))?.weights()?;
    assert_ne!(other, reference, "another number of logical shards is another tree");
    let refused = finish(&mut bench.launch("three", &[&SHARDS[..], &["--workers", "learner=3"]].concat()))?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("cannot share 4 logical shards"), "{refused:?}");
    Ok(())
}

#[test]
fn the_order_desk_is_learned_to_the_same_bits() -> Result<()> {
    let (_folder, bench) = bench()?;
    let mut reference = None;
    for ranks in ["learner=1", "learner=2", "learner=4"] {
        let mut launch = bench.command("launch");
        launch.arg("--run-dir").arg(bench.run_dir(ranks)).args(["--json", "--steps", "2", "--processes", "--workers", ranks]);
        for set in ["groups_per_step=4", "group_size=4", "logical_shards=4", "eval.samples=0", "eval.greedy=false"] {
            launch.args(["--set", &format!("training.{set}")]);
        }
        let weights = finish(&mut launch)?.weights()?;
        assert_eq!(reference.get_or_insert_with(|| weights.clone()), &weights, "{ranks}");
    }
    Ok(())
}

#[test]
#[ignore = "minutes, and 10 GiB: the real model in one, two and four ranks"]
fn the_real_model_takes_a_step_to_the_same_bits() -> Result<()> {
    let Some(_) = golden::smollm2("the_real_model_takes_a_step_to_the_same_bits")? else { return Ok(()) };
    let (_folder, bench) = bench()?;
    let path = format!("model.path={}", golden::smollm2_path().to_str().context("path is not UTF-8")?);
    let mut reference = None;
    for ranks in ["learner=1", "learner=2", "learner=4"] {
        let options = [&SHARDS[..], &["--steps", "1", "--set", &path, "--processes", "--workers", ranks]].concat();
        let weights = wait(start(&mut bench.launch(ranks, &options))?, Duration::from_secs(900))?.weights()?;
        assert_eq!(reference.get_or_insert_with(|| weights.clone()), &weights, "{ranks}");
    }
    Ok(())
}

#[test]
fn a_rank_killed_inside_a_step_does_not_change_a_bit() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &SHARDS))?.weights()?;
    for point in ["learner-backward:2", "follower-reduce:3", "lead-reduce:3", "follower-stepped:2"] {
        let name = point.replace(':', "-");
        let options = [&SHARDS[..], &["--processes", "--workers", "learner=2"]].concat();
        let mut launch = bench.launch(&name, &options);
        bench.arm(&mut launch, point)?;
        let ended = finish(&mut launch)?;
        assert_eq!(ended.weights()?, reference, "{point}");
        ensure!(ended.number("restarts")? >= 1 && bench.crashed(point)?, "{point} was hit: {:?}", ended.report);
        bench.balanced(&name, CONSUMED)?;
    }
    Ok(())
}
