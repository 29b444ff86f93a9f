//! A learner of several ranks: the same bits for any number of them, in one process or in many, on one host or on several,
//! killed at any named point.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::golden;
use cohort_tests::hosts::{join_at, listens, token};
use cohort_tests::launch::{Bench, GROUPS, PATIENCE, finish, processes_of, signal, start, until, wait};
use cohort_tests::netns::Network;
use std::time::Duration;

const CONSUMED: u64 = 4 * GROUPS;
/// Part of a run's numerics: what the ranks share.
const SHARDS: [&str; 2] = ["--set", "training.logical_shards=4"];
/// No part of them: each rank keeps a part of the optimizer's state.
const PARTS: [&str; 2] = ["--set", "training.shard_optimizer=true"];

#[test]
fn ranks_do_not_change_a_bit() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("one", &SHARDS))?.weights()?;
    let kinds: [(&str, &[&str]); 5] = [
        ("two", &["--workers", "learner=2"]),
        ("two-parts", &["--workers", "learner=2", PARTS[0], PARTS[1]]),
        ("four-parts", &["--processes", "--workers", "learner=4", PARTS[0], PARTS[1]]),
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
    for (name, extra, named) in [
        ("three", &["--workers", "learner=3"][..], "cannot share 4 logical shards"),
        ("one-part", &PARTS[..], "`training.shard_optimizer`: has no effect with one learner rank"),
    ] {
        let refused = finish(&mut bench.launch(name, &[&SHARDS[..], extra].concat()))?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(named), "{refused:?}");
    }
    Ok(())
}

/// A checkpoint knows nothing of ranks and parts: it is taken on with others, or with none.
#[test]
fn a_resume_may_change_ranks_and_parts() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &SHARDS))?.weights()?;
    let four = [&SHARDS[..], &PARTS, &["--steps", "1", "--workers", "learner=4"]].concat();
    finish(&mut bench.launch("changing", &four))?.weights()?;
    finish(&mut bench.resume("changing", &["--steps", "2", "--processes", "--workers", "learner=2"]))?.weights()?;
    let whole = ["--steps", "3", "--workers", "learner=2", "--set", "training.shard_optimizer=false"];
    finish(&mut bench.resume("changing", &whole))?.weights()?;
    let ended = finish(&mut bench.resume("changing", &["--steps", "4", "--workers", "learner=4", PARTS[0], PARTS[1]]))?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced("changing", CONSUMED)
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

/// A rank of two is killed at each of the points, to the bits of a run that nobody disturbed.
fn killed_at(points: &[&str], parts: &[&str]) -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &SHARDS))?.weights()?;
    for point in points {
        let name = point.replace(':', "-");
        let options = [&SHARDS[..], &["--processes", "--workers", "learner=2"], parts].concat();
        let mut launch = bench.launch(&name, &options);
        bench.arm(&mut launch, point)?;
        let ended = finish(&mut launch)?;
        assert_eq!(ended.weights()?, reference, "{point}");
        ensure!(ended.number("restarts")? >= 1 && bench.crashed(point)?, "{point} was hit: {:?}", ended.report);
        bench.balanced(&name, CONSUMED)?;
    }
    Ok(())
}

#[test]
fn a_rank_killed_inside_a_step_does_not_change_a_bit() -> Result<()> {
    killed_at(&["learner-backward:2", "follower-reduce:3", "lead-reduce:3", "follower-stepped:2"], &[])
}

/// Every loss is of a part of the optimizer's state. The third gathering of a follower is for the checkpoint of step 2.
#[test]
fn a_rank_killed_with_its_part_does_not_change_a_bit() -> Result<()> {
    let points = ["follower-reduce:3", "follower-gather:2", "lead-gather:2", "follower-gather:3", "follower-stepped:2"];
    killed_at(&points, &PARTS)
}

/// Ranks that took each step so far.
fn ranks_of_steps(bench: &Bench, name: &str) -> Result<Vec<u64>> {
    let Ok(text) = std::fs::read_to_string(bench.run_dir(name).join("metrics.jsonl")) else { return Ok(Vec::new()) };
    let whole = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    Ok(whole.filter_map(|line| line["perf/learner_ranks"].as_f64()).map(|ranks| ranks as u64).collect())
}

/// The lead listens on every interface; the other rank is on a host of its own, whose every process is killed and comes back.
#[test]
fn a_rank_on_another_host_changes_no_bit_and_may_die_with_it() -> Result<()> {
    let Some(network) = Network::new(2)? else { return Ok(()) };
    let (folder, bench) = bench()?;
    let steps = ["--steps", "300", SHARDS[0], "training.logical_shards=2"];
    let reference = finish(&mut bench.launch("calm", &steps))?.weights()?;
    let spread = ["--processes", "--workers", "learner=2", "--set", "cluster.learner_here=1"];
    let reach = ["--set", "cluster.listen=0.0.0.0:7400"];
    let run = start(&mut network.on(0, &bench.launch("wide", &[&steps[..], &spread, &reach].concat())))?;
    listens(&bench, "wide")?;
    let output = network.on(0, bench.command("token").arg(bench.run_dir("wide"))).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let secret = folder.path().join("token");
    std::fs::write(&secret, output.stdout)?;
    let mut command = bench.command("join");
    command.arg(format!("{}:7400", Network::address(0))).arg("--dir").arg(bench.run_dir("second"));
    let mut begin = network.on(1, command.args(["--roles", "learner=1", "--token-file"]).arg(&secret));
    let host = start(&mut begin)?;
    let shared = |from: usize| {
        let steps = ranks_of_steps(&bench, "wide")?;
        Ok(steps.iter().skip(from).filter(|&&ranks| ranks == 2).nth(5).map(|_| steps.len()))
    };
    let so_far = until("steps of both hosts", PATIENCE, || shared(0))?;
    signal(host.pid(), "KILL")?;
    until("the end of its rank", PATIENCE, || Ok(processes_of(&bench.run_dir("second"))?.is_empty().then_some(())))?;
    drop(host);
    let alone = until("steps of the lead alone", PATIENCE, || {
        let steps = ranks_of_steps(&bench, "wide")?;
        Ok(steps.iter().skip(so_far).any(|&ranks| ranks == 1).then_some(steps.len()))
    })?;
    let again = start(&mut begin)?;
    until("steps of both hosts again", PATIENCE, || shared(alone))?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced("wide", 300 * GROUPS)?;
    let left = wait(again, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    Ok(())
}

#[test]
fn ranks_without_a_place_are_refused_or_waited_for() -> Result<()> {
    let (folder, bench) = bench()?;
    let two = ["--processes", "--workers", "learner=2"];
    for (sets, named) in [
        (["cluster.learner_here=1", "cluster.learner=2"], "need cluster.listen"),
        (["cluster.learner_here=3", "cluster.listen=127.0.0.1:0"], "the ranks of the whole run"),
        (["cluster.listen=127.0.0.1:0", "cluster.nodes=[{ address = \"a\", learner = 2 }]"], "the lead is on the head node"),
    ] {
        let sets = sets.iter().flat_map(|set| ["--set", *set]).collect::<Vec<_>>();
        let refused = finish(&mut bench.launch("refused", &[&SHARDS[..], &two, &sets].concat()))?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(named), "{named}: {refused:?}");
    }
    // One rank of three has no place until a host comes: the others take the steps, and divide the optimizer's state anew when it has come.
    let reference = finish(&mut bench.launch("calm", &[&SHARDS[..], &["--steps", "200"]].concat()))?.weights()?;
    let open = ["--steps", "200", "--set", "cluster.listen=127.0.0.1:0", "--set", "cluster.learner_here=2"];
    let four = ["--processes", "--workers", "learner=4"];
    let run = start(&mut bench.launch("open", &[&SHARDS[..], &PARTS, &four, &open].concat()))?;
    let listen = listens(&bench, "open")?;
    let secret = folder.path().join("token");
    token(&bench, "open", &secret)?;
    until("steps of two", PATIENCE, || Ok(ranks_of_steps(&bench, "open")?.contains(&2).then_some(())))?;
    let host = join_at(&bench, &listen, "second", &secret, "learner=3")?;
    until("steps of four", PATIENCE, || Ok(ranks_of_steps(&bench, "open")?.contains(&4).then_some(())))?;
    assert_eq!(wait(run, PATIENCE)?.weights()?, reference);
    ensure!(wait(host, PATIENCE)?.code == Some(0));
    Ok(())
}
