//! A learner of several ranks: the same bits for any number of them, in one process or in many, killed at any named point.
use super::bench;
use anyhow::{Result, ensure};
use cohort_tests::launch::{GROUPS, finish};

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
