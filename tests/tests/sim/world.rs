//! The world: what there is, and the loop that lets it happen until the run is over or something does not hold.
use crate::agenda::{Agenda, Happening};
use crate::chance::Chance;
use crate::desk::Desk;
use crate::hosts::Hosts;
use crate::invariants::{self, Invariant};
use crate::net::{Net, WATCH};
use crate::ring::Ring;
use crate::seen::Seen;
use crate::setting::{HEALED, Point, Setting, TROUBLED};
use crate::trace::Trace;
use crate::workers::{HEAD, Proc};
use cohort_cluster::controller::Outcome;
use cohort_cluster::ledger::{Ledger, RunMeta, RunPaths, audit};
use cohort_learner::advantage::grpo::{EPS, Grpo};
use cohort_protocol::{PolicyVersion, Role, RunId, WorkerId};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// A checkpoint on the disk.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    pub(crate) version: PolicyVersion,
    pub(crate) digest: u64,
    pub(crate) damaged: bool,
}

/// Something that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Which invariant: the name of its file.
    pub(crate) rule: &'static str,
    /// What is wrong.
    pub(crate) what: String,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) setting: Setting,
    pub(crate) chance: Chance,
    /// Virtual time since the beginning.
    pub(crate) now: Duration,
    pub(crate) origin: Instant,
    pub(crate) agenda: Agenda,
    pub(crate) net: Net,
    pub(crate) desk: Desk,
    pub(crate) procs: BTreeMap<u32, Proc>,
    pub(crate) incarnations: BTreeMap<(WorkerId, u16), u32>,
    pub(crate) hosts: Hosts,
    pub(crate) ring: Ring,
    pub(crate) checkpoints: BTreeMap<String, Saved>,
    pub(crate) advantage: Grpo,
    pub(crate) paths: RunPaths,
    pub(crate) next_pid: u32,
    pub(crate) next_bulk: u64,
    /// Where the coordinator is to die, at the n-th passing.
    pub(crate) armed: Option<(Point, u32)>,
    pub(crate) crashes: BTreeMap<Point, u32>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) healed_at: Option<Duration>,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) trace: Trace,
    seen: Vec<Seen>,
    rules: Vec<Box<dyn Invariant>>,
    broken: Option<Broken>,
    _folder: tempfile::TempDir,
}

/// A run's end.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) broken: Option<Broken>,
    pub(crate) trace: String,
    pub(crate) last: Vec<String>,
    pub(crate) took: Duration,
    pub(crate) crashes: BTreeMap<Point, u32>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) intents: Vec<cohort_protocol::StepIntent>,
}

impl World {
    /// Runs a setting to its end.
    pub(crate) fn run(setting: Setting) -> anyhow::Result<Ran> {
        let mut world = Self::new(setting)?;
        world.begin();
        while world.outcome.is_none() && world.broken.is_none() {
            let Some((at, what)) = world.agenda.next() else { break };
            world.now = at;
            world.happen(what);
            world.look();
            if world.healed_at.is_some_and(|healed| at > healed + HEALED) {
                let phase = world.desk.core.as_ref().map(|core| core.state.phase());
                world.break_rule(
                    "progress",
                    &format!("{} s after the last trouble the run is not over: {phase:?}", HEALED.as_secs()),
                );
            }
        }
        world.end();
        Ok(Ran {
            broken: world.broken,
            trace: world.trace.digest(),
            last: world.trace.last(),
            took: world.now,
            crashes: world.crashes,
            counts: world.counts,
            intents: world
                .desk
                .core
                .and_then(|core| core.ledger.past().ok())
                .map_or_else(Vec::new, |p| p.intents.into_values().collect()),
        })
    }

    fn new(setting: Setting) -> anyhow::Result<Self> {
        // In memory where there is such a place: what a crash leaves is decided here, not by the disk.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }?;
        let paths = RunPaths::new(folder.path().join("run"));
        let meta = RunMeta { run: RunId(1), numerics: "simulated".into(), config_hash: String::new() };
        drop(Ledger::create(&paths, &meta)?);
        Ok(Self {
            chance: Chance::new(setting.seed),
            rules: invariants::all(&setting)?,
            setting,
            now: Duration::ZERO,
            origin: Instant::now(),
            agenda: Agenda::default(),
            net: Net::default(),
            desk: Desk::default(),
            procs: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            hosts: Hosts::default(),
            ring: Ring::default(),
            checkpoints: BTreeMap::new(),
            advantage: Grpo { std: true, bessel: false, eps: EPS },
            paths,
            next_pid: 100,
            next_bulk: 0,
            armed: None,
            crashes: BTreeMap::new(),
            counts: BTreeMap::new(),
            healed_at: None,
            outcome: None,
            trace: Trace::default(),
            seen: Vec::new(),
            broken: None,
            _folder: folder,
        })
    }

    fn begin(&mut self) {
        self.rise();
        self.begin_hosts();
        self.spawn(WorkerId { role: Role::Learner, index: 0 }, HEAD);
        self.agenda.put(WATCH, Happening::Watch);
        for (index, (at, _)) in self.setting.blows.iter().enumerate() {
            self.agenda.put(*at, Happening::Blow(index));
        }
        self.agenda.put(TROUBLED, Happening::Heal);
        self.look();
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Dial { pid } => self.dial(pid),
            Happening::Arrive { wire, way, parcel } => self.arrive(wire, way, parcel),
            Happening::Watch => self.watch(),
            Happening::Sampled { pid, key } => self.sampled(pid, key),
            Happening::Mail { pid, note } => self.mail(pid, note),
            Happening::Beat { pid } => self.beat(pid),
            Happening::Wake { pid } => self.wake(pid),
            Happening::Respawn { worker, host } => {
                if self.hosts.wants(host, worker) {
                    self.spawn(worker, host);
                }
            }
            Happening::Rise => self.rise(),
            Happening::Tick { start } => self.tick(start),
            Happening::Written { start } => self.written(start),
            Happening::Scored { start, wire, bulk, reply } => self.scored(start, wire, bulk, reply),
            Happening::DeskWakes { start } => self.desk_wakes(start),
            Happening::Host(note) => self.host_note(note),
            Happening::Cut { host, until } => self.cut(host, until),
            Happening::Blow(index) => self.strike(index),
            Happening::Heal => self.heal(),
        }
    }

    /// Notes something for the invariants.
    pub(crate) fn see(&mut self, seen: Seen) {
        self.seen.push(seen);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// The first thing that does not hold ends the run.
    pub(crate) fn break_rule(&mut self, rule: &'static str, what: &str) {
        if self.broken.is_none() {
            self.broken = Some(Broken { rule, what: what.to_owned() });
        }
    }

    /// Every invariant looks at what has just happened.
    fn look(&mut self) {
        let (seen, mut rules) = (std::mem::take(&mut self.seen), std::mem::take(&mut self.rules));
        for one in &seen {
            self.trace.note(self.now, one);
            for rule in &mut rules {
                if let Err(what) = rule.see(self, one) {
                    self.break_rule(rule.name(), &what);
                }
            }
        }
        for rule in &mut rules {
            if let Err(what) = rule.check(self) {
                self.break_rule(rule.name(), &what);
            }
        }
        self.rules = rules;
    }

    fn end(&mut self) {
        if let Some(Outcome::Failed { error, .. }) = self.outcome.clone() {
            self.break_rule("progress", &format!("the run was given up: {error}"));
        }
        if self.broken.is_some() {
            return;
        }
        match audit(&self.paths) {
            Ok(report) if report.balanced && report.in_flight == 0 => {}
            Ok(report) => self.break_rule("accounts", &format!("the audit at the end: {report:?}")),
            Err(error) => self.break_rule("accounts", &format!("the audit at the end: {error}")),
        }
    }
}
