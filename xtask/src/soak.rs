//! `cargo xtask soak`: the promises of `docs/reliability.md` tried far more often than the gate has time for.
//!
//! A part is one row of its table: a test and how many trials it makes. What a test measures it leaves as JSON under
//! `target/reliability/`.
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// These parts only; without it, all
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// Other trials than the part's own
    #[arg(long)]
    trials: Option<u32>,
    /// Say which parts there are, and run nothing
    #[arg(long)]
    list: bool,
}

/// One row of the table.
struct Part {
    name: &'static str,
    /// What one trial is.
    trial: &'static str,
    trials: u32,
    repeated: Repeated,
    /// Arguments of `cargo`.
    command: &'static [&'static str],
}

/// How a part's trials are made.
#[derive(Clone, Copy, PartialEq)]
enum Repeated {
    /// By the command, which reads the number of trials from this variable.
    Within(&'static str),
    /// The command makes one.
    Again,
}

const TRIALS: Repeated = Repeated::Within("COHORT_TRIALS");

const PARTS: [Part; 9] = [
    Part {
        name: "sim",
        trial: "a seed of the simulation",
        trials: 20_000,
        repeated: Repeated::Within("COHORT_SIM_SEEDS"),
        command: &["test", "-q", "-p", "cohort-tests", "--test", "sim", "--", "--nocapture", "whatever_goes_wrong"],
    },
    Part {
        name: "kills",
        trial: "26 kills of every kind of process, at every named point and at random, each run to the same bits",
        trials: 20,
        repeated: Repeated::Again,
        command: &["test", "-q", "-p", "cohort-tests", "--test", "runs", "--", "--nocapture", "kills", "bits", "ranks", "killed"],
    },
    Part {
        name: "recovery",
        trial: "a kill, and a stop, of each role: time to notice, time to recover",
        trials: 20,
        repeated: TRIALS,
        command: &["test", "-q", "-p", "cohort-tests", "--test", "chaos", "--", "--nocapture", "recovery"],
    },
    Part {
        name: "partition",
        trial: "18 cuts of the links of three nodes",
        trials: 12,
        repeated: TRIALS,
        command: &["test", "-q", "-p", "cohort-tests", "--test", "chaos", "--", "--nocapture", "partition"],
    },
    Part {
        name: "weather",
        trial: "three profiles of loss, jitter, duplicates and flipped bits",
        trials: 4,
        repeated: TRIALS,
        command: &["test", "-q", "-p", "cohort-tests", "--test", "chaos", "--", "--nocapture", "weather"],
    },
    Part {
        name: "overload",
        trial: "3 s of each phase: calm, slow grader, no grader (twice), no learner (twice)",
        trials: 200,
        repeated: TRIALS,
        command: &["test", "-q", "-p", "cohort-tests", "--test", "chaos", "--", "--nocapture", "overload"],
    },
    Part {
        name: "memory",
        trial: "three workers killed by the kernel for want of memory",
        trials: 17,
        repeated: TRIALS,
        command: &["test", "-q", "-p", "cohort-tests", "--test", "chaos", "--", "--nocapture", "memory"],
    },
    Part {
        name: "disks",
        trial: "a disk that is full at another size, of a run in one process and of one in many",
        trials: 200,
        repeated: TRIALS,
        command: &["test", "-q", "-p", "cohort-tests", "--test", "runs", "--", "--nocapture", "disks"],
    },
    Part {
        name: "checkpoints",
        trial: "a checkpoint with a flipped bit, a file cut, gone or in the place of another",
        trials: 10_000,
        repeated: TRIALS,
        command: &["test", "-q", "-p", "cohort-learner", "--test", "suite", "--", "--nocapture", "any_damage"],
    },
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let known: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
    if let Some(unknown) = args.only.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("no part {unknown:?}; there are {}", known.join(", "));
    }
    for part in PARTS.iter().filter(|part| args.only.is_empty() || args.only.iter().any(|name| name == part.name)) {
        let trials = args.trials.unwrap_or(part.trials);
        if args.list {
            println!("{:12} {trials:6} x {}", part.name, part.trial);
            continue;
        }
        let begun = Instant::now();
        part.run(trials)?;
        println!("{}: {trials} x {}: held, {:.0} s", part.name, part.trial, begun.elapsed().as_secs_f64());
    }
    Ok(())
}

impl Part {
    fn run(&self, trials: u32) -> Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let figures = std::path::absolute(target)?.join("reliability");
        let rounds = if self.repeated == Repeated::Again { trials } else { 1 };
        for round in 1..=rounds {
            let mut command = Command::new("cargo");
            command.args(self.command).current_dir(&root).env("COHORT_FIGURES", &figures);
            if let Repeated::Within(variable) = self.repeated {
                command.env(variable, trials.to_string());
            }
            let status = command.status().context("cargo")?;
            if !status.success() {
                bail!("{}, round {round} of {rounds}: {status}; what broke is printed above", self.name);
            }
        }
        Ok(())
    }
}
