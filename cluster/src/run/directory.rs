//! The run's folder: made, taken over with `--clean`, or entered again with `--resume`; locked as long as the launch lives.
use super::wiring::Wiring;
use super::{LaunchOptions, RunError, resume};
use crate::config::{Inputs, Resolved};
use crate::ledger::place::{check_local, write_atomically};
use crate::ledger::{Ledger, LedgerError, Reader, RunLock, RunMeta, RunPaths};
use cohort_protocol::RunId;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A folder that is ours.
#[derive(Debug)]
pub struct Prepared {
    /// Names inside.
    pub paths: RunPaths,
    /// Held until the launch is over.
    pub lock: RunLock,
    meta: RunMeta,
}

impl Prepared {
    /// The run.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.meta.run
    }
}

/// Makes or enters the run directory. Checks everything it can first (R1); a failed check leaves nothing behind.
pub fn prepare(resolved: &Resolved, options: &LaunchOptions) -> Result<Prepared, RunError> {
    let config = Arc::new(resolved.config.clone());
    if let Some(path) = &options.resume {
        let wiring = check(config, path)?;
        return enter(path, resolved, &wiring);
    }
    let path = options.run_dir.clone().unwrap_or_else(|| fresh_name(&resolved.config.cluster.run_root));
    let wiring = check(config, &path)?;
    let taken = std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
    if taken && !is_run(&path) {
        return Err(RunError::NotARun { path });
    }
    if taken && !options.clean {
        return Err(RunError::Exists { path });
    }
    let made = !path.exists();
    std::fs::create_dir_all(&path).map_err(|e| LedgerError::io("make", &path, e))?;
    check_local(&path)?;
    let path = path.canonicalize().map_err(|e| LedgerError::io("find", &path, e))?;
    let paths = RunPaths::new(&path);
    let lock = RunLock::take(&paths.launch_lock(), Duration::ZERO)?;
    if taken {
        clean(&path)?;
    }
    match begin(&paths, resolved, &wiring) {
        Ok(meta) => Ok(Prepared { paths, lock, meta }),
        Err(error) => {
            // The first error is the one to report; what cannot be removed is a run's, which `--clean` takes.
            let _ = clean(&path).map(|()| std::fs::remove_file(paths.launch_lock()));
            if made {
                let _ = std::fs::remove_dir(&path);
            }
            Err(match error {
                RunError::Ledger(LedgerError::NoSpace { .. }) => RunError::NoRoom { path },
                error => error,
            })
        }
    }
}

/// Writes what makes a folder a run's, the ledger last.
fn begin(paths: &RunPaths, resolved: &Resolved, wiring: &Wiring) -> Result<RunMeta, RunError> {
    write_atomically(&paths.config(), resolved.to_toml()?.as_bytes())?;
    std::fs::create_dir_all(paths.root().join(LOGS)).map_err(|e| LedgerError::io("make", paths.root(), e))?;
    let config_hash = resume::identity(&resolved.config);
    let meta = RunMeta { run: random_id()?, numerics: wiring.numerics(), config_hash };
    drop(Ledger::create(paths, &meta)?);
    Ok(meta)
}

/// R1: everything a worker will be made from can be made.
fn check(config: Arc<crate::config::Config>, path: &Path) -> Result<Wiring, RunError> {
    let wiring = Wiring::open(config, RunId(0), path)?;
    wiring.check()?;
    Ok(wiring)
}

/// Goes on with a run. The settings of this launch, where they may differ, replace those in `config.toml`, which its
/// processes and the next `--resume` read.
fn enter(path: &Path, resolved: &Resolved, wiring: &Wiring) -> Result<Prepared, RunError> {
    let missing = || LedgerError::Missing { path: path.to_owned() };
    let path = path.canonicalize().map_err(|_| missing())?;
    let paths = RunPaths::new(&path);
    if !paths.ledger().is_file() {
        return Err(missing().into());
    }
    let lock = RunLock::take(&paths.launch_lock(), Duration::ZERO)?;
    let meta = Reader::open(&paths)?.meta()?;
    let now = wiring.numerics();
    if meta.numerics != now {
        return Err(RunError::Numerics { begun: meta.numerics, now });
    }
    let begun = Resolved::load(&Inputs { files: vec![paths.config()], ..Inputs::default() })?;
    if let Some(resume::Change { key, run, given, why }) = resume::refused(&begun.config, &resolved.config) {
        return Err(RunError::Changed { key, run, given, why });
    }
    if meta.config_hash != resume::identity(&begun.config) {
        return Err(RunError::Edited { path: paths.config() });
    }
    if begun.config != resolved.config {
        write_atomically(&paths.config(), resolved.to_toml()?.as_bytes())?;
    }
    // That of an earlier launch must not pass for this one's.
    match std::fs::remove_file(paths.summary()) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(LedgerError::io("remove", &paths.summary(), e).into()),
        _ => {}
    }
    Ok(Prepared { paths, lock, meta })
}

/// `runs/2026-01-31T12-00-00Z-1f2e`: sorts by time, never met twice.
fn fresh_name(root: &Path) -> PathBuf {
    let now = time::UtcDateTime::now();
    let stamp = format!(
        "{:04}-{:02}-{:02}T{:02}-{:02}-{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    );
    let tail = random_id().map_or(u64::from(std::process::id()), |id| id.0) & 0xffff;
    root.join(format!("{stamp}-{tail:04x}"))
}

fn random_id() -> Result<RunId, RunError> {
    let mut bytes = [0u8; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| RunError::System { what: "read /dev/urandom", source })?;
    // The ledger's integers are signed.
    Ok(RunId(u64::from_le_bytes(bytes) >> 1))
}

/// What a run writes in its directory, the launch's lock apart.
const WRITTEN: [&str; 20] = [
    "config.toml",
    "ledger.sqlite",
    "ledger.sqlite-wal",
    "ledger.sqlite-shm",
    "ledger.lock",
    "keeper.sqlite",
    "keeper.sqlite-wal",
    "keeper.sqlite-shm",
    "keeper.lock",
    "keeper.json",
    "segments",
    "checkpoints",
    "metrics.jsonl",
    "evaluations.jsonl",
    "status.json",
    "agent.json",
    "control.json",
    "summary.json",
    "certs",
    "invitation.toml",
];
/// The logs of earlier launches; removed last, so that a directory that was half cleaned still is a run's.
const LOGS: &str = "logs";

/// Whether a run was begun here: its lock, and its ledger, its configuration or nothing at all beside it.
fn is_run(path: &Path) -> bool {
    let paths = RunPaths::new(path);
    let alone = || std::fs::read_dir(path).is_ok_and(|entries| entries.count() == 1);
    paths.launch_lock().is_file() && (paths.ledger().is_file() || paths.config().is_file() || alone())
}

/// Removes what an earlier run wrote; whatever else lies there is somebody else's and stays.
fn clean(path: &Path) -> Result<(), LedgerError> {
    let drafts = std::fs::read_dir(path).map_err(|e| LedgerError::io("read", path, e))?.flatten().map(|entry| entry.path());
    let drafts = drafts.filter(|p| {
        let ours = p.file_stem().is_some_and(|stem| WRITTEN.iter().any(|name| Path::new(name).file_stem() == Some(stem)));
        let kind = p.extension().and_then(|e| e.to_str()).unwrap_or_default();
        ours && (kind == "new" || kind.starts_with("draft"))
    });
    let drafts: Vec<PathBuf> = drafts.collect();
    for child in drafts.into_iter().chain(WRITTEN.iter().chain([&LOGS]).map(|name| path.join(name))) {
        let removed = if child.is_dir() { std::fs::remove_dir_all(&child) } else { std::fs::remove_file(&child) };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(LedgerError::io("remove", &child, e)),
            _ => {}
        }
    }
    Ok(())
}
