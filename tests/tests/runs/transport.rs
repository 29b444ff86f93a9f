//! Runs whose messages go over TCP, because it was asked for or because UDP does not pass.
use super::bench;
use anyhow::{Result, ensure};
use cohort_tests::hosts::{join, listens, step, tell, token, with_weights};
use cohort_tests::launch::{Bench, GROUPS, PATIENCE, Running, finish, start, until, wait};
use cohort_tests::netns::Network;
use std::path::Path;

const STEPS: [&str; 2] = ["--steps", "100"];
const CONSUMED: u64 = 100 * GROUPS;

/// What the logs of a folder say, all together.
pub(super) fn logs(folder: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        text += &if path.is_dir() { logs(&path)? } else { std::fs::read_to_string(&path)? };
    }
    Ok(text)
}

/// Lines of a text that say all of it.
fn said(text: &str, words: &[&str]) -> usize {
    text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// A command to a run, on the head node.
type Tell<'a> = &'a dyn Fn(&str) -> Result<()>;

/// Keeps a run from ending before another host is there.
fn pause(bench: &Bench, name: &str, tell: Tell<'_>) -> Result<()> {
    until("the first step", PATIENCE, || Ok((step(bench, name)? > 0).then_some(())))?;
    tell("pause")
}

/// The paused run gets a worker of another host and goes to its end, with these weights, and nothing was lost.
fn ends_alike(bench: &Bench, name: &str, tell: Tell<'_>, [run, host]: [Running; 2], reference: &str) -> Result<String> {
    until("a worker of the other host with weights", PATIENCE, || Ok((with_weights(bench, name)?.len() >= 2).then_some(())))?;
    tell("resume")?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced(name, CONSUMED)?;
    let left = wait(host, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    Ok(left.stderr)
}

#[test]
fn over_tcp_alone_the_weights_are_the_same_bits() -> Result<()> {
    let (folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &STEPS))?.weights()?;
    let set = ["--set", "cluster.transport=tcp", "--set", "cluster.listen=127.0.0.1:0"];
    let run = start(bench.launch("tcp", &STEPS).arg("--processes").args(set))?;
    listens(&bench, "tcp")?;
    let tell = |what: &str| tell(&bench, what, "tcp", &[]);
    pause(&bench, "tcp", &tell)?;
    let secret = folder.path().join("token");
    token(&bench, "tcp", &secret)?;
    // It is told of TCP only once it is in: it finds out by itself.
    let host = join(&bench, "tcp", "second", &secret, "rollout=1")?;
    let stderr = ends_alike(&bench, "tcp", &tell, [run, host], &reference)?;
    ensure!(said(&stderr, &["udp_blocked", "cluster.transport", "node-0"]) == 1, "said once: {stderr}");
    for (folder, workers) in [("tcp", 3), ("second", 1)] {
        let logs = logs(&bench.run_dir(folder).join("logs"))?;
        ensure!(said(&logs, &["connected", "over=\"tcp\""]) >= workers, "{folder}: {logs}");
        ensure!(said(&logs, &["over=\"quic\""]) == 0 && said(&logs, &["udp_blocked"]) == 0, "{folder}: {logs}");
    }
    Ok(())
}

/// Two hosts with addresses of their own, between which no UDP passes. Nobody is told.
#[test]
fn where_udp_is_blocked_tcp_is_found_and_said_and_no_bit_changes() -> Result<()> {
    let Some(network) = Network::new(2)? else { return Ok(()) };
    network.block_udp(1)?;
    let (folder, bench) = bench()?;
    let reference = finish(&mut bench.launch("calm", &STEPS))?.weights()?;
    let listen = format!("cluster.listen={}:7400", Network::address(0));
    let run = start(&mut network.on(0, bench.launch("walled", &STEPS).args(["--processes", "--set", &listen])))?;
    listens(&bench, "walled")?;
    let asked = |what: &str| {
        let output = network.on(0, bench.command(what).arg(bench.run_dir("walled"))).output()?;
        ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    let tell = |what: &str| asked(what).map(drop);
    pause(&bench, "walled", &tell)?;
    let secret = folder.path().join("token");
    std::fs::write(&secret, asked("token")?)?;
    let mut command = bench.command("join");
    command.arg(format!("{}:7400", Network::address(0))).arg("--dir").arg(bench.run_dir("second"));
    let host = start(&mut network.on(1, command.arg("--token-file").arg(&secret)))?;
    let stderr = ends_alike(&bench, "walled", &tell, [run, host], &reference)?;
    ensure!(said(&stderr, &["udp_blocked"]) == 1, "the agent says it once: {stderr}");
    let theirs = logs(&bench.run_dir("second").join("logs"))?;
    ensure!(said(&theirs, &["udp_blocked"]) >= 1 && said(&theirs, &["connected", "over=\"tcp\""]) >= 1, "{theirs}");
    // Who is not behind the wall keeps to QUIC.
    let ours = logs(&bench.run_dir("walled").join("logs"))?;
    ensure!(said(&ours, &["connected", "over=\"quic\""]) >= 3 && said(&ours, &["over=\"tcp\""]) == 0, "{ours}");
    Ok(())
}
