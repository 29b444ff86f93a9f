//! Runs over several hosts, and runs that are steered while they go on. The hosts are agents of their own on loopback, each with
//! its own folder; nothing passes between them but what they send each other.
use super::bench;
use super::transport::logs;
use anyhow::{Result, ensure};
use cohort_tests::hosts::{join, listens, step, tell, token, with_weights};
use cohort_tests::launch::{GROUPS, PATIENCE, finish, processes_of, signal, start, until, wait};
use cohort_tests::netns::Network;

/// Seconds, so that hosts come and go while the run goes on.
const STEPS: &str = "400";
const CONSUMED: u64 = 400 * GROUPS;
const LISTEN: [&str; 6] = ["--processes", "--set", "cluster.listen=127.0.0.1:0", "--steps", STEPS, "--json"];

/// Two hosts with addresses of their own. One is cut off, for longer than it may be, and comes back.
#[test]
fn a_host_that_is_cut_off_and_comes_back_changes_no_bit() -> Result<()> {
    let Some(network) = Network::new(2)? else { return Ok(()) };
    let (folder, bench) = bench()?;
    let steps = ["--steps", "800"];
    let reference = finish(&mut bench.launch("calm", &steps))?.weights()?;
    let listen = format!("cluster.listen={}:7400", Network::address(0));
    let options = ["--processes", "--set", &listen, steps[0], steps[1]];
    let run = start(&mut network.on(0, &bench.launch("apart", &options)))?;
    listens(&bench, "apart")?;
    let mut command = bench.command("token");
    let output = network.on(0, command.arg(bench.run_dir("apart"))).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let steer = |order: &str| -> Result<()> {
        let output = network.on(0, bench.command(order).arg(bench.run_dir("apart"))).output()?;
        ensure!(output.status.success(), "{order}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let secret = folder.path().join("token");
    std::fs::write(&secret, output.stdout)?;
    let mut command = bench.command("join");
    command.arg(format!("{}:7400", Network::address(0))).arg("--dir").arg(bench.run_dir("second"));
    let host = start(&mut network.on(1, command.arg("--token-file").arg(&secret)))?;
    until("a worker of the other host with weights", PATIENCE, || Ok((with_weights(&bench, "apart")?.len() >= 2).then_some(())))?;
    network.plug(1, false)?;
    let then = step(&bench, "apart")?;
    until("progress without the host", PATIENCE, || Ok((step(&bench, "apart")? > then + 5).then_some(())))?;
    // The run is not to end before its host is back, however fast the machine is.
    steer("pause")?;
    until("the head node's patience to end", PATIENCE, || Ok(run.stderr()?.contains("node-1 has left").then_some(())))?;
    network.plug(1, true)?;
    until("the host's return", PATIENCE, || Ok((with_weights(&bench, "apart")?.len() >= 2).then_some(())))?;
    steer("resume")?;
    // Eight hundred steps, on a slow machine too.
    let ended = wait(run, PATIENCE * 3)?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced("apart", 800 * GROUPS)?;
    let left = wait(host, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    Ok(())
}

#[test]
fn hosts_that_come_go_and_die_change_no_bit() -> Result<()> {
    let (folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", STEPS]))?.weights()?;
    let run = start(&mut bench.launch("wide", &LISTEN[..5]))?;
    listens(&bench, "wide")?;
    let secret = folder.path().join("token");
    token(&bench, "wide", &secret)?;
    let host = join(&bench, "wide", "second", &secret, "rollout=2")?;
    until("workers of the second host with weights", PATIENCE, || Ok((with_weights(&bench, "wide")?.len() >= 3).then_some(())))?;
    // The token is used up; another host needs another one.
    let refused = wait(join(&bench, "wide", "third", &secret, "rollout=1")?, PATIENCE)?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("used up"), "{refused:?}");
    // A worker of the second host dies: its agent starts it again.
    let workers = processes_of(&bench.run_dir("second"))?;
    ensure!(workers.len() == 2, "{workers:?}");
    signal(workers[0], "KILL")?;
    until("the worker's successor", PATIENCE, || {
        let now = processes_of(&bench.run_dir("second"))?;
        Ok((now.len() == 2 && !now.contains(&workers[0])).then_some(()))
    })?;
    // The whole host dies; its workers go with it, and it comes back without a token, as the same host.
    signal(host.pid(), "KILL")?;
    until("the end of its workers", PATIENCE, || Ok(processes_of(&bench.run_dir("second"))?.is_empty().then_some(())))?;
    drop(host);
    let mut command = bench.command("join");
    command.arg(listens(&bench, "wide")?).arg("--dir").arg(bench.run_dir("second")).args(["--roles", "rollout=2"]);
    let again = start(&mut command)?;
    let before = step(&bench, "wide")?;
    until("the host's return", PATIENCE, || {
        let back = with_weights(&bench, "wide")?.len() >= 3 && !processes_of(&bench.run_dir("second"))?.is_empty();
        Ok((back && step(&bench, "wide")? > before).then_some(()))
    })?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced("wide", CONSUMED)?;
    let left = wait(again, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    ensure!(processes_of(&bench.run_dir("second"))?.is_empty(), "its workers have left");
    // Its first version came whole, as its ring was lost; then what changed did, in fewer bytes, and both ends say so.
    let given = logs(&bench.run_dir("wide").join("logs"))?;
    for (log, what) in [(&left.stderr, "weights_arrived"), (&given, "weights_given")] {
        let [whole, whole_bytes, deltas, delta_bytes] =
            ["whole_chunks", "whole_bytes", "delta_chunks", "delta_bytes"].map(|figure| travelled(log, what, figure));
        ensure!(whole > 0 && deltas > whole, "{what}: {whole} chunks whole, {deltas} as what changed");
        ensure!(delta_bytes * whole < whole_bytes * deltas, "{what}: {delta_bytes} bytes for {deltas} chunks");
    }
    Ok(())
}

/// A figure of all lines about weights that travelled, added up.
fn travelled(log: &str, what: &str, figure: &str) -> u64 {
    let value = |word: &str| word.strip_prefix(figure)?.strip_prefix('=')?.parse::<u64>().ok();
    let of_line = |line: &str| line.split_whitespace().find_map(value);
    log.lines().filter(|line| line.contains(what)).filter_map(of_line).sum()
}

/// The head node coordinates and learns; who generates and grades comes from elsewhere, or the run says that nobody did.
#[test]
fn a_head_node_without_workers_waits_for_the_hosts_that_bring_them() -> Result<()> {
    let (folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &[]))?.weights()?;
    const NOBODY: [&str; 5] = ["--processes", "--workers", "rollout=0,reward=0", "--set", "cluster.listen=127.0.0.1:0"];
    let refused = finish(&mut bench.launch("alone", &NOBODY[..3]))?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("nobody could ever generate"), "{refused:?}");
    let impatient = [&NOBODY[..], &["--set", "cluster.join_patience_s=1"]].concat();
    let lonely = finish(&mut bench.launch("alone", &impatient))?;
    ensure!(lonely.code == Some(7) && lonely.stderr.contains("no host with"), "{lonely:?}");
    ensure!(lonely.stderr.contains("cluster.join_patience_s") && lonely.stderr.contains("--resume"), "{lonely:?}");
    ensure!(processes_of(&bench.run_dir("alone"))?.is_empty(), "its processes have left");
    // The same run, and this time somebody comes.
    let run = start(&mut bench.resume("alone", &["--set", "cluster.join_patience_s=600"]))?;
    let waits = "no host has rollout workers: waiting up to 600 s";
    until("word of what is lacking", PATIENCE, || Ok(run.stderr()?.contains(waits).then_some(())))?;
    let secret = folder.path().join("token");
    token(&bench, "alone", &secret)?;
    let host = join(&bench, "alone", "second", &secret, "rollout=2,reward=1")?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced("alone", 4 * GROUPS)?;
    let left = wait(host, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    Ok(())
}

#[test]
fn a_run_is_scaled_paused_and_stopped_while_it_goes_on_and_no_bit_changes() -> Result<()> {
    let (_folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &["--steps", STEPS]))?.weights()?;
    let run = start(&mut bench.launch("steered", &["--processes", "--steps", STEPS]))?;
    until("the first step", PATIENCE, || Ok((step(&bench, "steered")? > 0).then_some(())))?;
    tell(&bench, "scale", "steered", &["rollout=3", "reward=2"])?;
    until("more workers", PATIENCE, || Ok((with_weights(&bench, "steered")?.len() == 3).then_some(())))?;
    tell(&bench, "scale", "steered", &["rollout=1"])?;
    until("fewer workers", PATIENCE, || {
        let now = processes_of(&bench.run_dir("steered"))?.len();
        // Coordinator, learner, two reward workers, one rollout worker.
        Ok((now == 5).then_some(()))
    })?;
    let refused = bench.command("scale").arg(bench.run_dir("steered")).arg("rollout=0").output()?;
    ensure!(refused.status.code() == Some(2) && String::from_utf8_lossy(&refused.stderr).contains("stand still"));
    tell(&bench, "pause", "steered", &[])?;
    // What has begun is finished: at most the step in hand and the one before it.
    let mut last = (step(&bench, "steered")?, 0);
    until("standstill", PATIENCE, || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = step(&bench, "steered")?;
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        Ok((last.1 == 5).then_some(()))
    })?;
    ensure!(last.0 < 400, "it was paused before its end");
    tell(&bench, "resume", "steered", &[])?;
    until("steps after the pause", PATIENCE, || Ok((step(&bench, "steered")? > last.0 + 1).then_some(())))?;
    tell(&bench, "stop", "steered", &[])?;
    let stopped = wait(run, PATIENCE)?;
    ensure!(stopped.code == Some(20) && stopped.stderr.contains("--resume"), "{stopped:?}");
    let late = bench.command("pause").arg(bench.run_dir("steered")).output()?;
    ensure!(String::from_utf8_lossy(&late.stderr).contains("is not running here"));
    let resumed = finish(&mut bench.resume("steered", &[]))?;
    assert_eq!(resumed.weights()?, reference);
    bench.balanced("steered", CONSUMED)
}
