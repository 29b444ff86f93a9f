//! Certificates that are renewed while a run goes on, of the head node's processes and of another host's; those of a host that was let
//! go, which open no door from then on.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_actors::certs::Identity;
use cohort_actors::transport::TransportOptions;
use cohort_actors::transport::reach::{Carrier, Reach};
use cohort_actors::{Dialer, LinkOptions, Shutdown, WorkerLink};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator};
use cohort_protocol::{Role, RunId, WorkerId, version};
use cohort_tests::hosts::{join, listens, step, tell, token, with_weights};
use cohort_tests::launch::{Bench, GROUPS, PATIENCE, finish, processes_of, signal, start, until, wait};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Fingerprint of each place's certificate, by what `cluster certs` says.
fn fingerprints(bench: &Bench, name: &str) -> Result<BTreeMap<String, String>> {
    let output = bench.command("certs").arg(bench.run_dir(name)).arg("--json").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let listed = report["certificates"].as_array().context("no certificates")?;
    let one = |c: &Value| {
        ensure!(c["until"].as_u64() > c["from"].as_u64(), "{c}");
        let place = format!("{}-{}", c["place"]["role"].as_str().context("role")?, c["place"]["index"]);
        Ok((place, c["fingerprint"].as_str().context("fingerprint")?.to_owned()))
    };
    listed.iter().map(one).collect()
}

#[test]
fn certificates_renewed_twice_while_it_trains_cut_nobody_off_and_change_no_bit() -> Result<()> {
    let (folder, bench) = bench()?;
    let steps = ["--steps", "150"];
    let reference = finish(&mut bench.launch("calm", &steps))?.weights()?;
    let run = start(bench.launch("renewed", &steps).args(["--processes", "--set", "cluster.listen=127.0.0.1:0"]))?;
    listens(&bench, "renewed")?;
    until("the first step", PATIENCE, || Ok((step(&bench, "renewed")? > 0).then_some(())))?;
    tell(&bench, "pause", "renewed", &[])?;
    let secret = folder.path().join("token");
    token(&bench, "renewed", &secret)?;
    let host = join(&bench, "renewed", "second", &secret, "rollout=1")?;
    until("a worker of the other host with weights", PATIENCE, || {
        Ok((with_weights(&bench, "renewed")?.len() >= 2).then_some(()))
    })?;
    let before = processes_of(&bench.run_dir("renewed"))?;
    for _ in 0..2 {
        let old = fingerprints(&bench, "renewed")?;
        let places: Vec<&str> = old.keys().map(String::as_str).collect();
        ensure!(places == ["coordinator-0", "learner-0", "node-0", "node-1", "reward-0", "rollout-0", "rollout-1"], "{places:?}");
        tell(&bench, "certs", "renewed", &["--rotate"])?;
        until("a new certificate in every place", PATIENCE, || {
            let new = fingerprints(&bench, "renewed")?;
            Ok(old.iter().all(|(place, fingerprint)| new[place] != *fingerprint).then_some(()))
        })?;
        // The host has written what it was given, and whoever dials anew shows it.
        let (now, file) = (fingerprints(&bench, "renewed")?, bench.run_dir("second").join("certs/issued.jsonl"));
        ensure!(now.len() == 7 && !file.exists(), "the authority alone keeps a book");
    }
    ensure!(processes_of(&bench.run_dir("renewed"))? == before, "nobody was started anew");
    tell(&bench, "resume", "renewed", &[])?;
    // A worker's successor meets everybody with the new ones.
    let workers = processes_of(&bench.run_dir("second"))?;
    signal(workers[0], "KILL")?;
    until("the worker's successor", PATIENCE, || {
        let now = processes_of(&bench.run_dir("second"))?;
        Ok((now.len() == 1 && now != workers).then_some(()))
    })?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced("renewed", 150 * GROUPS)?;
    let left = wait(host, PATIENCE)?;
    ensure!(left.code == Some(0) && !left.stderr.contains("head_node_out_of_reach"), "{left:?}");
    Ok(())
}

/// Comes to the coordinator as a reward worker with the certificate that lies in a folder; `Err`: how it was kept out.
fn knock(certs: &Path, run: RunId, worker: WorkerId, coordinator: SocketAddr) -> Result<Result<(), String>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let identity = Identity::load(certs, run, worker)?;
        let reach = Reach::new(Carrier::Quic, TransportOptions::default());
        let coordinator_0 = WorkerId { role: Role::Coordinator, index: 0 };
        let dialer: Arc<dyn Dialer> = Arc::new(reach.dialer(coordinator_0, coordinator, &identity)?);
        let hello = Hello {
            protocol_min: version::PROTOCOL_MIN,
            protocol_max: version::PROTOCOL,
            run,
            worker,
            pid: std::process::id(),
            incarnation: 9,
            numerics: String::new(),
        };
        let options = LinkOptions { give_up: Some(Duration::from_secs(5)), ..LinkOptions::default() };
        let link = WorkerLink::<CoordinatorToReward, RewardToCoordinator>::connect(dialer, hello, options, Shutdown::new());
        Ok(link.await.map(drop).map_err(|error| error.to_string()))
    })
}

/// What a worker's command line says after an argument.
fn argument(pid: u32, name: &str) -> Result<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let words: Vec<&[u8]> = line.split(|&b| b == 0).collect();
    let at = words.iter().position(|word| *word == name.as_bytes()).context("no such argument")?;
    Ok(String::from_utf8(words.get(at + 1).context("no value")?.to_vec())?)
}

#[test]
fn a_host_that_was_drained_and_its_workers_are_kept_out_with_the_certificates_that_they_have() -> Result<()> {
    let (folder, bench) = bench()?;
    let steps = ["--steps", "150"];
    let reference = finish(&mut bench.launch("calm", &steps))?.weights()?;
    let run = start(bench.launch("left", &steps).args(["--processes", "--set", "cluster.listen=127.0.0.1:0"]))?;
    listens(&bench, "left")?;
    until("the first step", PATIENCE, || Ok((step(&bench, "left")? > 0).then_some(())))?;
    tell(&bench, "pause", "left", &[])?;
    let secret = folder.path().join("token");
    token(&bench, "left", &secret)?;
    let host = join(&bench, "left", "second", &secret, "rollout=1,reward=1")?;
    until("a worker of the other host with weights", PATIENCE, || Ok((with_weights(&bench, "left")?.len() >= 2).then_some(())))?;
    // What the host has, kept by somebody.
    let kept = folder.path().join("kept");
    let copied = Command::new("cp").arg("-a").arg(bench.run_dir("second").join("certs")).arg(&kept).status()?;
    ensure!(copied.success(), "{copied}");
    let worker = *processes_of(&bench.run_dir("second"))?.first().context("no worker")?;
    let coordinator: SocketAddr = argument(worker, "--coordinator")?.parse()?;
    let id = RunId(argument(worker, "--run")?.parse()?);
    let reward = |index| WorkerId { role: Role::Reward, index };
    ensure!(kept.join("reward-1.pem").exists(), "the host's reward worker is another one");
    tell(&bench, "drain", "left", &["--host", "node-1"])?;
    let why = knock(&kept, id, reward(1), coordinator)?.err().context("the drained host's worker came in")?;
    ensure!(["node-1 was drained", "revoked", "cluster token"].iter().all(|part| why.contains(part)), "{why}");
    // The coordinator said so too, and a certificate of the head node's own opens the door.
    let log = || -> Result<String> {
        let logs = bench.run_dir("left").join("logs/attempt-1");
        Ok(std::fs::read_to_string(logs.join("coordinator-0.log"))?)
    };
    until("the coordinator's word of it", PATIENCE, || Ok(log()?.contains("node-1 was drained").then_some(())))?;
    knock(&bench.run_dir("left").join("certs"), id, reward(0), coordinator)?.map_err(anyhow::Error::msg)?;
    let left = wait(host, PATIENCE)?;
    ensure!(left.code == Some(0), "{left:?}");
    // A coordinator that is started anew knows it too.
    let pid = bench.process_of("left", "coordinator-0")?.context("a coordinator")?;
    signal(pid, "KILL")?;
    until("another coordinator", PATIENCE, || Ok(bench.process_of("left", "coordinator-0")?.filter(|now| *now != pid)))?;
    let again = knock(&kept, id, reward(1), coordinator)?.err().context("it came in after a restart")?;
    ensure!(again.contains("node-1 was drained"), "{again}");
    // Nor does the place where hosts join open.
    let mut command = bench.command("join");
    let refused = finish(command.arg(listens(&bench, "left")?).arg("--dir").arg(bench.run_dir("second")))?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("node-1 was drained"), "{refused:?}");
    tell(&bench, "resume", "left", &[])?;
    let ended = wait(run, PATIENCE)?;
    assert_eq!(ended.weights()?, reference);
    bench.balanced("left", 150 * GROUPS)
}
