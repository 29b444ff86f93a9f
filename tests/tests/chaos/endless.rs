//! A run that goes on until its test has seen enough.
use anyhow::{Context, Result, ensure};
use cohort_tests::hosts::step;
use cohort_tests::launch::{Bench, GROUPS, PATIENCE, Running, finish, signal, start, until, wait};
use std::process::Command;
use std::time::Duration;

/// In which a run that is told to leave has left.
const DRAIN: Duration = Duration::from_secs(30);

/// A run of processes without an end of its own.
pub(crate) struct Endless<'a> {
    bench: &'a Bench,
    name: &'a str,
    run: Running,
}

impl<'a> Endless<'a> {
    /// Launches it and waits for its first step.
    pub(crate) fn start(bench: &'a Bench, name: &'a str, options: &[&str]) -> Result<Self> {
        Self::start_as(bench, name, &mut Self::command(bench, name, options))
    }

    /// What [`Self::start_as`] is to run, perhaps within something.
    pub(crate) fn command(bench: &Bench, name: &str, options: &[&str]) -> Command {
        bench.launch(name, &[&["--processes", "--steps", "1000000"], options].concat())
    }

    pub(crate) fn start_as(bench: &'a Bench, name: &'a str, command: &mut Command) -> Result<Self> {
        let mut endless = Self { bench, name, run: start(command)? };
        until("first step", PATIENCE, || {
            ensure!(!endless.run.has_ended()?, "{}", endless.run.stderr()?);
            Ok((endless.step()? > 0).then_some(()))
        })?;
        Ok(endless)
    }

    /// Steps committed.
    pub(crate) fn step(&self) -> Result<u64> {
        step(self.bench, self.name)
    }

    /// The process of the agent.
    pub(crate) fn pid(&self) -> u32 {
        self.run.pid()
    }

    /// What the launch has said.
    pub(crate) fn said(&self) -> Result<String> {
        self.run.stderr()
    }

    /// Waits for so many further steps.
    pub(crate) fn progress(&mut self, steps: u64, within: Duration) -> Result<()> {
        let then = self.step()?;
        until("progress", within, || {
            ensure!(!self.run.has_ended()?, "{}", self.run.stderr()?);
            Ok((self.step()? >= then + steps).then_some(()))
        })
        .with_context(|| format!("{} after step {then}; it is at {:?}", self.name, self.step()))
    }

    /// Ends it as Slurm would, and audits it: its name and its steps.
    fn end(self) -> Result<(&'a Bench, &'a str, u64)> {
        let Self { bench, name, run } = self;
        signal(run.pid(), "TERM")?;
        let ended = wait(run, DRAIN).context("the end after SIGTERM")?;
        ensure!(ended.code == Some(20), "{name}: {ended:?}");
        let steps = ended.number("steps")?;
        let audit = bench.audit(name)?;
        ensure!(audit["balanced"] == true && audit["consumed"] == steps * GROUPS, "{name}: {audit}");
        Ok((bench, name, steps))
    }

    /// Ends and audits it, and takes its recorded steps again: they must give the same weights. For asynchronous runs.
    pub(crate) fn end_as_recorded(self) -> Result<u64> {
        let (bench, name, steps) = self.end()?;
        let replayed = bench.command("replay").arg(bench.run_dir(name)).output()?;
        ensure!(replayed.status.success(), "{name}: {}", String::from_utf8_lossy(&replayed.stderr));
        Ok(steps)
    }

    /// Ends and audits it, and compares its last checkpoint (weights, optimizer, random numbers, cursor) with that of a run
    /// of as many steps in one process that nobody disturbed. `alike`: the options that make it the same run.
    pub(crate) fn end_as_if_undisturbed(self, alike: &[&str]) -> Result<u64> {
        let (bench, name, steps) = self.end()?;
        let calm = format!("{name}-undisturbed");
        let undisturbed = finish(&mut bench.launch(&calm, &[&["--steps", &steps.to_string()], alike].concat()))?;
        ensure!(undisturbed.code == Some(0), "{undisturbed:?}");
        let manifest = |name: &str| {
            let path = bench.run_dir(name).join(format!("checkpoints/step-{steps}/manifest.json"));
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let (disturbed, undisturbed) = (manifest(name)?, manifest(&calm)?);
        ensure!(disturbed == undisturbed, "{name}, step {steps}: {disturbed}\nundisturbed: {undisturbed}");
        Ok(steps)
    }
}
