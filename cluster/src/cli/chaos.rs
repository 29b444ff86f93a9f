//! `cluster chaos RUN`: kills processes of a running run at random, and says what that costs.
//!
//! First the run is watched undisturbed, then processes of the chosen roles on this host are killed (`kill -9`) at moments
//! drawn from a Poisson process. Effective training time is the wall time that the steps under kills would have taken
//! undisturbed over the time they took: 1 means that kills cost nothing. Only processes that the run's `agent.json` names
//! and whose command line names the run are killed.
use super::steer::seconds;
use super::{CliError, Exit, json_line};
use crate::agent::ChildReport;
use crate::ledger::{LedgerError, RunPaths};
use crate::progress::{RunPhase, RunStatus};
use cohort_protocol::Role;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two looks at the run.
const LOOK: Duration = Duration::from_millis(100);
/// Steps that the calm part must see at least; fewer say little about the pace.
const CALM_STEPS: u64 = 3;
/// A run that commits nothing for so long is given up on.
const STANDSTILL: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run directory of a running run of processes
    run: PathBuf,
    /// How often a process is killed, as 10/min or 1/h
    #[arg(long, value_name = "RATE", default_value = "10/min", value_parser = rate)]
    kill: f64,
    /// Whom to kill
    #[arg(long, value_name = "ROLES", value_delimiter = ',', value_parser = role, default_value = "rollout,reward,learner,coordinator")]
    roles: Vec<Role>,
    /// How long the run is watched undisturbed first; at least three steps
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = seconds)]
    calm: u64,
    /// How long to go on killing; without it, until the run ends
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    length: Option<u64>,
    /// Key of the moments and the choice
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the report as one line of JSON, the last on stdout
    #[arg(long)]
    json: bool,
}

/// Kills a second.
fn rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is no rate; give it as 10/min, 1/h or 0.5/s");
    let (count, unit) = text.split_once('/').ok_or_else(wrong)?;
    let per = match unit {
        "s" => 1.0,
        "min" | "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let count: f64 = count.parse().map_err(|_| wrong())?;
    let rate = count / per;
    if rate > 0.0 && rate <= 10.0 { Ok(rate) } else { Err(format!("{text:?}: more than none and at most 10 a second")) }
}

fn role(text: &str) -> Result<Role, String> {
    let roles = [Role::Coordinator, Role::Rollout, Role::Reward, Role::Learner];
    let found = roles.into_iter().find(|role| role.to_string() == text);
    found.ok_or_else(|| format!("no role {text:?}; there are coordinator, rollout, reward and learner"))
}

/// What the kills cost.
#[derive(Debug, PartialEq, Serialize)]
struct Report {
    /// Processes killed, by role.
    kills: BTreeMap<String, u64>,
    /// Undisturbed over disturbed wall time at equal steps.
    effective_training_time: f64,
    /// Steps committed under kills.
    steps: u64,
    /// Seconds under kills.
    seconds: f64,
    /// Steps a second, undisturbed.
    calm_steps_per_s: f64,
    /// Whether the run had ended when the report was made.
    ended: bool,
}

/// A part of the run: steps over time.
#[derive(Debug, Clone, Copy)]
struct Pace {
    steps: u64,
    time: Duration,
}

impl Pace {
    fn per_second(self) -> f64 {
        self.steps as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

/// See [`Report::effective_training_time`].
fn effective(calm: Pace, disturbed: Pace) -> f64 {
    disturbed.per_second() / calm.per_second()
}

/// Seconds to the next kill of a Poisson process.
fn pause(rate: f64, draw: &mut fastrand::Rng) -> Duration {
    Duration::from_secs_f64((-(1.0 - draw.f64()).ln() / rate).min(86_400.0))
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let paths = RunPaths::new(&args.run);
    if !paths.ledger().is_file() {
        return Err(LedgerError::Missing { path: args.run.clone() }.into());
    }
    let mut watch = Watch { paths, draw: fastrand::Rng::with_seed(args.seed), kills: BTreeMap::new() };
    let calm = watch.calm(Duration::from_secs(args.calm))?;
    let (disturbed, ended) = watch.disturb(args, args.length.map(Duration::from_secs))?;
    let report = Report {
        kills: watch.kills,
        effective_training_time: effective(calm, disturbed),
        steps: disturbed.steps,
        seconds: disturbed.time.as_secs_f64(),
        calm_steps_per_s: calm.per_second(),
        ended,
    };
    if args.json {
        json_line(out, &report)?;
    } else {
        let kills: Vec<String> = report.kills.iter().map(|(role, n)| format!("{role} {n}")).collect();
        writeln!(out, "killed: {}", if kills.is_empty() { "nobody".to_owned() } else { kills.join(", ") })?;
        writeln!(out, "{} steps in {:.0} s; {:.2} steps/s undisturbed", report.steps, report.seconds, report.calm_steps_per_s)?;
        writeln!(out, "effective training time {:.3}", report.effective_training_time)?;
    }
    Ok(Exit::Success)
}

struct Watch {
    paths: RunPaths,
    draw: fastrand::Rng,
    kills: BTreeMap<String, u64>,
}

impl Watch {
    /// Steps committed so far, and whether that was the last.
    fn step(&self) -> Result<(u64, bool), CliError> {
        let bytes = std::fs::read(self.paths.status()).map_err(|e| CliError::io("read", &self.paths.status(), &e))?;
        let status: RunStatus = serde_json::from_slice(&bytes)?;
        Ok((status.step, status.phase == RunPhase::Finished))
    }

    /// Waits for the first step, then watches.
    fn calm(&self, least: Duration) -> Result<Pace, CliError> {
        let over =
            || CliError::new(Exit::Usage, "the run ended before it could be disturbed: give it more steps, or chaos less --calm");
        let begun = Instant::now();
        let first = loop {
            match self.step()? {
                (_, true) => return Err(over()),
                (0, _) if begun.elapsed() > STANDSTILL => return Err(stands_still()),
                (0, _) => std::thread::sleep(LOOK),
                (step, _) => break step,
            }
        };
        let begun = Instant::now();
        loop {
            std::thread::sleep(LOOK);
            let ((now, ended), time) = (self.step()?, begun.elapsed());
            if ended {
                return Err(over());
            }
            if time >= least && now >= first + CALM_STEPS {
                return Ok(Pace { steps: now - first, time });
            }
            if time > STANDSTILL.max(least) && now == first {
                return Err(stands_still());
            }
        }
    }

    fn disturb(&mut self, args: &Args, length: Option<Duration>) -> Result<(Pace, bool), CliError> {
        let (first, begun) = (self.step()?.0, Instant::now());
        let (mut last, mut moved) = (first, begun);
        let mut next = begun + pause(args.kill, &mut self.draw);
        loop {
            std::thread::sleep(LOOK);
            let now = Instant::now();
            let (step, ended) = self.step()?;
            if step != last {
                (last, moved) = (step, now);
            }
            // Measured to the last commit: what came after it is not known yet.
            let pace = Pace { steps: last - first, time: moved - begun };
            if ended || !alive(&self.paths) || length.is_some_and(|length| now - begun >= length) {
                return Ok((pace, ended));
            }
            if now - moved > STANDSTILL {
                return Err(stands_still());
            }
            if now >= next {
                next = now + pause(args.kill, &mut self.draw);
                self.kill_one(&args.roles);
            }
        }
    }

    fn kill_one(&mut self, roles: &[Role]) {
        // A file that is being written anew is read at the next kill.
        let Ok(children) = std::fs::read(self.paths.agent()).map(|bytes| serde_json::from_slice(&bytes)) else { return };
        let children: Vec<ChildReport> = children.unwrap_or_default();
        let named = |child: &ChildReport| roles.iter().find(|role| child.name.starts_with(&format!("{role}-"))).copied();
        let candidates: Vec<(Role, u32)> = children
            .iter()
            .filter(|child| child.host.is_none())
            .filter_map(|child| Some((named(child)?, child.pid?)))
            .filter(|(_, pid)| is_of(*pid, self.paths.root()))
            .collect();
        if candidates.is_empty() {
            return;
        }
        let (role, pid) = candidates[self.draw.usize(..candidates.len())];
        let killed = i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::KILL));
        if killed.is_some_and(|killed| killed.is_ok()) {
            *self.kills.entry(role.to_string()).or_default() += 1;
        }
    }
}

/// Whether a process is a worker of the run.
fn is_of(pid: u32, run: &Path) -> bool {
    let Ok(run) = run.canonicalize() else { return false };
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = words.split(|&b| b == 0);
    let run = run.as_os_str().as_encoded_bytes();
    words.any(|word| word == b"worker") && words.any(|word| word == run)
}

/// Whether the run's agent is there; one that has gone took the run with it.
fn alive(paths: &RunPaths) -> bool {
    crate::agent::control::Place::read(paths).is_ok_and(|place| Path::new(&format!("/proc/{}", place.pid)).exists())
}

fn stands_still() -> CliError {
    let text = format!("the run has committed nothing for {} s; its logs say why", STANDSTILL.as_secs());
    CliError::new(Exit::WorkerGaveUp, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_roles_are_read_or_refused() {
        assert!((rate("10/min").unwrap() - 1.0 / 6.0).abs() < 1e-12);
        assert!((rate("1/h").unwrap() - 1.0 / 3600.0).abs() < 1e-12);
        for wrong in ["10", "ten/min", "0/min", "-1/s", "11/s", "1/day", "nan/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert!(role("node").is_err());
    }

    #[test]
    fn moments_have_the_rate_asked_for() {
        let mut draw = fastrand::Rng::with_seed(3);
        let total: f64 = (0..20_000).map(|_| pause(0.5, &mut draw).as_secs_f64()).sum();
        assert!((total / 20_000.0 - 2.0).abs() < 0.05, "{}", total / 20_000.0);
    }

    #[test]
    fn twice_the_time_for_the_same_steps_is_half_effective() {
        let calm = Pace { steps: 10, time: Duration::from_secs(10) };
        let disturbed = Pace { steps: 30, time: Duration::from_secs(60) };
        assert!((effective(calm, disturbed) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn only_workers_of_the_run_are_met() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_of(std::process::id(), dir.path()));
        assert!(!is_of(1, dir.path()));
    }
}
