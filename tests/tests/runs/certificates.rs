//! Certificates that are renewed while a run goes on, of the head node's processes and of another host's.
use super::bench;
use anyhow::{Context, Result, ensure};
use cohort_tests::hosts::{join, listens, step, tell, token, with_weights};
use cohort_tests::launch::{Bench, GROUPS, PATIENCE, finish, processes_of, signal, start, until, wait};
use serde_json::Value;
use std::collections::BTreeMap;

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
