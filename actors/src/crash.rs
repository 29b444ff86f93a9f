//! Named places where a test can make a process kill itself, to prove that a crash there loses and doubles nothing.
//!
//! Armed by the environment and inherited by every process of a run:
//! - `COHORT_CRASH=NAME:NTH[,NAME:NTH..]`: die at the NTH passing (from 1, counted per process) of the point NAME;
//! - `COHORT_CRASH_DIR=DIR`: where a marker file per entry says that it was done, so that a restarted process lives.
//!
//! Unarmed, a point costs one load of a static.
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// In a rollout worker, a sequence half generated, its lease held.
pub const MID_DECODE: &str = "mid-decode";
/// In a rollout worker, a trajectory batch sent and not yet acknowledged.
pub const TRAJECTORY_SENT: &str = "trajectory-sent";
/// In a rollout worker, a while after it has handed in what it has of a group that is not complete.
pub const HANDED_IN: &str = "handed-in";
/// In a reward worker, a score reply sent and not yet acknowledged.
pub const SCORE_SENT: &str = "score-sent";
/// In the coordinator, between a step's intent and its commit.
pub const INTENT_COMMITTED: &str = "intent-committed";
/// In the learner, after the first micro-batch of a step, its gradients in memory and no update made.
pub const LEARNER_BACKWARD: &str = "learner-backward";
/// In a learner rank that follows, pieces of its gradient sent, their sums not yet received.
pub const FOLLOWER_REDUCE: &str = "follower-reduce";
/// In the learner rank that leads, the first piece of the gradient summed and sent to the others, the rest not.
pub const LEAD_REDUCE: &str = "lead-reduce";
/// In a learner rank that follows and keeps a part of the optimizer's state, values of it, or weights that it has updated, handed on, the rest not.
pub const FOLLOWER_GATHER: &str = "follower-gather";
/// In the learner rank that leads, the same.
pub const LEAD_GATHER: &str = "lead-gather";
/// In a learner rank that follows, the step done and not yet confirmed to the lead.
pub const FOLLOWER_STEPPED: &str = "follower-stepped";
/// In the learner, checkpoint files written and not yet renamed.
pub const CHECKPOINT: &str = "checkpoint";
/// In the learner, between any two things that saving a checkpoint does to the disk: each passing is another place.
pub const SAVING: &str = "saving";
/// In the learner, the header and about half of the tensors of a weight slot written, the slot marked as being written.
pub const PUBLISH: &str = "publish";

/// Every point there is.
pub const ALL: [&str; 14] = [
    MID_DECODE,
    TRAJECTORY_SENT,
    HANDED_IN,
    SCORE_SENT,
    INTENT_COMMITTED,
    LEARNER_BACKWARD,
    FOLLOWER_REDUCE,
    LEAD_REDUCE,
    FOLLOWER_GATHER,
    LEAD_GATHER,
    FOLLOWER_STEPPED,
    CHECKPOINT,
    SAVING,
    PUBLISH,
];

/// Environment variable that arms points.
pub const ENV: &str = "COHORT_CRASH";
/// Environment variable that names the directory of markers.
pub const ENV_DIR: &str = "COHORT_CRASH_DIR";

/// The environment asks for something that cannot be done: exit, do not run without the crash that a test counts on.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CrashError {
    /// No point has that name.
    #[error("{ENV}={value}: no crash point is named {name:?}; there are {}", ALL.join(", "))]
    UnknownPoint {
        /// The variable.
        value: String,
        /// The name in it.
        name: String,
    },
    /// Not `NAME:NTH`.
    #[error("{ENV}={value}: {entry:?} is not NAME:NTH with NTH of at least 1")]
    Malformed {
        /// The variable.
        value: String,
        /// The entry.
        entry: String,
    },
    /// The directory of markers is not given.
    #[error("{ENV} is set and {ENV_DIR} is not; set it to a directory that outlives the killed process")]
    NoDirectory,
    /// The directory of markers does not exist.
    #[error("{ENV_DIR}={}: there is no such directory; make it before the run, it outlives the killed process", .0.display())]
    MissingDirectory(PathBuf),
}

/// Reads the environment. Call it first in every process, so that a misspelt point is an error and not a test that
/// passes without a crash.
pub fn arm_from_env() -> Result<(), CrashError> {
    let armed = parse(std::env::var(ENV).ok(), std::env::var_os(ENV_DIR).map(PathBuf::from))?;
    if let Some(Armed { dir, .. }) = armed.as_ref().filter(|armed| !armed.dir.is_dir()) {
        return Err(CrashError::MissingDirectory(dir.clone()));
    }
    // A second call finds the same environment.
    let _ = ARMED.set(armed);
    Ok(())
}

/// Kills this process with SIGKILL if `name` is armed and this is the passing it waits for. Nothing is flushed or dropped.
pub fn crash_point(name: &'static str) {
    let Some(Some(armed)) = ARMED.get() else { return };
    let Some(point) = armed.points.get(name) else { return };
    let passing = point.passed.fetch_add(1, Ordering::Relaxed) + 1;
    if passing < point.nth {
        return;
    }
    match claim(armed, name, point.nth) {
        Ok(true) => kill_self(),
        Ok(false) => {}
        Err(error) => {
            // Living on would make a test pass without its crash: the run ends here, with the reason.
            let why = format!("crash point {name}: its marker cannot be written in {}: {error}", armed.dir.display());
            tracing::error!(target: "cohort::crash", why, "not_crashed");
            // Nobody may be reading.
            let _ = writeln!(io::stderr(), "{why}");
            std::process::exit(i32::from(crate::supervision::process::exit::NO_RESTART));
        }
    }
}

static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

#[derive(Debug)]
struct Armed {
    points: HashMap<&'static str, Point>,
    dir: PathBuf,
}

#[derive(Debug)]
struct Point {
    nth: u64,
    passed: AtomicU64,
}

fn parse(value: Option<String>, dir: Option<PathBuf>) -> Result<Option<Armed>, CrashError> {
    let Some(value) = value.filter(|v| !v.is_empty()) else { return Ok(None) };
    let dir = dir.ok_or(CrashError::NoDirectory)?;
    let mut points = HashMap::new();
    for entry in value.split(',') {
        let malformed = || CrashError::Malformed { value: value.clone(), entry: entry.to_owned() };
        let (name, nth) = entry.split_once(':').ok_or_else(malformed)?;
        let nth: u64 = nth.parse().ok().filter(|&n| n > 0).ok_or_else(malformed)?;
        let name = ALL
            .into_iter()
            .find(|&known| known == name)
            .ok_or_else(|| CrashError::UnknownPoint { value: value.clone(), name: name.to_owned() })?;
        points.insert(name, Point { nth, passed: AtomicU64::new(0) });
    }
    Ok(Some(Armed { points, dir }))
}

/// Whether this process is the first of the run to reach the entry. `create_new` decides between racing processes.
fn claim(armed: &Armed, name: &str, nth: u64) -> io::Result<bool> {
    let marker = armed.dir.join(format!("{name}-{nth}.crashed"));
    match OpenOptions::new().write(true).create_new(true).open(marker) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn kill_self() -> ! {
    // SIGKILL to oneself cannot fail; should it be late, this thread goes no further.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> Result<Option<Armed>, CrashError> {
        parse(Some(value.to_owned()), Some(PathBuf::from("/nowhere")))
    }

    #[test]
    fn reads_entries_and_refuses_what_it_cannot_do() {
        assert!(parse(None, None).unwrap().is_none());
        let armed = parsed("publish:2,mid-decode:7").unwrap().unwrap();
        assert_eq!(armed.points[PUBLISH].nth, 2);
        assert_eq!(armed.points[MID_DECODE].nth, 7);
        assert!(matches!(parsed("mid-decod:1"), Err(CrashError::UnknownPoint { name, .. }) if name == "mid-decod"));
        for bad in ["publish", "publish:0", "publish:x", "publish:1,"] {
            assert!(matches!(parsed(bad), Err(CrashError::Malformed { .. })), "{bad}");
        }
        assert_eq!(parse(Some("publish:1".into()), None).unwrap_err(), CrashError::NoDirectory);
    }

    #[test]
    fn one_process_of_the_run_claims_an_entry() {
        let dir = tempfile::tempdir().unwrap();
        let armed = parse(Some("publish:1".into()), Some(dir.path().into())).unwrap().unwrap();
        assert!(claim(&armed, PUBLISH, 1).unwrap());
        assert!(!claim(&armed, PUBLISH, 1).unwrap());
        assert!(claim(&armed, PUBLISH, 2).unwrap(), "another entry is another marker");
        drop(dir);
        assert_eq!(claim(&armed, PUBLISH, 3).unwrap_err().kind(), io::ErrorKind::NotFound, "no crash is no success");
    }
}
