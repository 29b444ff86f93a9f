//! Hosts that join a run, and what a run is told while it goes on: for the end-to-end and chaos tests.
use crate::launch::{Bench, PATIENCE, Running, start, until};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;

/// Where other hosts join a run.
pub fn listens(bench: &Bench, name: &str) -> Result<String> {
    let control = bench.run_dir(name).join("control.json");
    until("control.json", PATIENCE, || {
        let Ok(text) = std::fs::read(&control) else { return Ok(None) };
        let place: Value = serde_json::from_slice(&text)?;
        Ok(place["listen"].as_str().map(str::to_owned))
    })
}

/// `cluster token RUN`, kept in a file.
pub fn token(bench: &Bench, name: &str, file: &Path) -> Result<()> {
    let output = bench.command("token").arg(bench.run_dir(name)).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(std::fs::write(file, output.stdout)?)
}

/// `cluster join` to where a run listens, with a folder of the host's own beside the run's.
pub fn join(bench: &Bench, name: &str, host: &str, token: &Path, roles: &str) -> Result<Running> {
    join_at(bench, &listens(bench, name)?, host, token, roles)
}

/// As [`join`], by an address of the head node.
pub fn join_at(bench: &Bench, head: &str, host: &str, token: &Path, roles: &str) -> Result<Running> {
    let mut command = bench.command("join");
    command.arg(head).arg("--dir").arg(bench.run_dir(host)).arg("--roles").arg(roles);
    start(command.arg("--token-file").arg(token))
}

/// A command about a run that must succeed.
pub fn tell(bench: &Bench, subcommand: &str, name: &str, args: &[&str]) -> Result<()> {
    let output = bench.command(subcommand).arg(bench.run_dir(name)).args(args).output()?;
    ensure!(output.status.success(), "{subcommand}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Rollout workers that have weights, by name.
pub fn with_weights(bench: &Bench, name: &str) -> Result<Vec<String>> {
    let Some(status) = bench.status(name)? else { return Ok(Vec::new()) };
    let actors = status["actors"].as_array().context("no actors")?;
    let named = actors.iter().filter(|a| a["role"] == "rollout" && a["version"].as_u64() > Some(0));
    Ok(named.filter_map(|a| a["name"].as_str().map(str::to_owned)).collect())
}

/// Steps that a run has committed.
pub fn step(bench: &Bench, name: &str) -> Result<u64> {
    Ok(bench.status(name)?.and_then(|status| status["step"].as_u64()).unwrap_or(0))
}
