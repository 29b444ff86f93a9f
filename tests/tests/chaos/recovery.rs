//! How soon a dead or silent process is noticed, and how soon the run has what it had: rows 3 and 4 of the table.
//!
//! Noticed: killed, the agent no longer names the process; stopped, a worker's connection is lost and its work with others,
//! the coordinator is killed by its agent. Recovered: the next process of that role is there and does its part, and two
//! more steps are committed (the first may have been in hand). Times of stopped processes are seen to a quarter of a second.
use super::endless::Endless;
use super::figures::{Times, keep};
use super::{bench, trials};
use anyhow::{Context, Result};
use cohort_tests::launch::{Bench, PATIENCE, signal, until};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

const S: Duration = Duration::from_secs(1);

/// Who, and how long its recovery may take.
const VICTIMS: [(&str, Duration); 4] = [
    ("rollout-0", S.saturating_mul(10)),
    ("reward-0", S.saturating_mul(10)),
    ("learner-0", S.saturating_mul(30)),
    ("coordinator-0", S.saturating_mul(15)),
];

/// One run, whose processes get a signal in turn.
struct Patient<'a> {
    bench: &'a Bench,
    name: &'a str,
    run: Endless<'a>,
}

impl Patient<'_> {
    fn agent_names(&self, actor: &str) -> Result<Option<u64>> {
        let text = std::fs::read(self.bench.run_dir(self.name).join("agent.json"))?;
        let children: Value = serde_json::from_slice(&text)?;
        let children = children.as_array().context("agent.json is no list")?;
        Ok(children.iter().find(|child| child["name"] == actor).and_then(|child| child["pid"].as_u64()))
    }

    /// `status.json`, read here: a command of its own would take longer than what is measured.
    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.bench.run_dir(self.name).join("status.json"))?)?)
    }

    fn actor(&self, actor: &str) -> Result<Value> {
        let status = self.status()?;
        let actors = status["actors"].as_array().context("status has no actors")?;
        Ok(actors.iter().find(|a| a["name"] == actor).cloned().unwrap_or_default())
    }

    fn step(&self) -> Result<u64> {
        self.status()?["step"].as_u64().context("status has no step")
    }

    /// Whether a process of that role, not this one, does its part.
    fn is_well(&self, actor: &str, but: u64) -> Result<bool> {
        let now = self.actor(actor)?;
        let there = now["pid"].as_u64().is_some_and(|pid| pid != but) && now["state"] != "lost" && now["state"] != "starting";
        Ok(there && (now["role"] != "rollout" || now["version"].as_u64() > Some(0)))
    }

    /// Sends a signal and gives the times to its notice and to recovery.
    fn trial(&self, actor: &str, kind: &str) -> Result<(Duration, Duration)> {
        let pid = until("a process that is well", PATIENCE, || {
            let pid = self.agent_names(actor)?;
            Ok(pid.filter(|&pid| self.actor(actor).is_ok_and(|now| now["pid"] == pid && now["state"] != "lost")))
        })?;
        let then = self.step()?;
        let begun = Instant::now();
        signal(u32::try_from(pid)?, kind)?;
        let noticed = until("notice", PATIENCE, || {
            let gone = self.agent_names(actor)? != Some(pid);
            let lost = kind == "STOP" && actor != "coordinator-0" && self.actor(actor)?["state"] == "lost";
            Ok((gone || lost).then(|| begun.elapsed()))
        })?;
        let recovered =
            until("recovery", PATIENCE, || Ok((self.is_well(actor, pid)? && self.step()? >= then + 2).then(|| begun.elapsed())))
                .with_context(|| format!("{actor} after SIG{kind}: {:?}", self.status()))?;
        Ok((noticed, recovered))
    }
}

/// Signals everyone so often, and gives the figures; the run must end as if nothing had happened.
fn signalled(kind: &str, rounds: usize, notice: Duration) -> Result<Value> {
    let (_folder, bench) = bench()?;
    let name = "signalled";
    let run = Endless::start(&bench, name, &["--workers", "rollout=2,reward=2"])?;
    let patient = Patient { bench: &bench, name, run };
    let mut figures = Map::new();
    for (actor, limit) in VICTIMS {
        let (mut noticed, mut recovered) = (Times::default(), Times::default());
        for round in 0..rounds {
            // Another moment of a step each time.
            std::thread::sleep(Duration::from_millis(37 * (round as u64 + 1) % 150));
            let (notice, recovery) = patient.trial(actor, kind)?;
            noticed.add(notice);
            recovered.add(recovery);
        }
        figures.insert(actor.to_owned(), json!({ "noticed": noticed.json(), "recovered": recovered.json() }));
        keep(&format!("recovery-{}", kind.to_lowercase()), &Value::Object(figures.clone()))?;
        anyhow::ensure!(noticed.percentile(0.99) <= notice, "{actor}: {figures:?}");
        anyhow::ensure!(recovered.percentile(0.99) <= limit, "{actor}: {figures:?}");
    }
    let steps = patient.run.end_as_if_undisturbed(&[])?;
    figures.insert("steps".into(), steps.into());
    Ok(Value::Object(figures))
}

#[test]
fn whoever_is_killed_is_noticed_within_a_second_and_soon_replaced() -> Result<()> {
    keep("recovery-kill", &signalled("KILL", trials(5), S)?)
}

#[test]
fn whoever_is_stopped_is_noticed_within_five_seconds_and_soon_replaced() -> Result<()> {
    keep("recovery-stop", &signalled("STOP", trials(1), 5 * S)?)
}
