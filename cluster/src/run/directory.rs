//! The run's folder: made, taken over with `--clean`, or entered again with `--resume`; locked as long as the launch lives.
use super::wiring::Wiring;
use super::{LaunchOptions, RunError};
use crate::config::Resolved;
use crate::ledger::place::{check_local, write_atomically};
use crate::ledger::{Ledger, LedgerError, RunLock, RunMeta, RunPaths};
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
        return resume(path, &wiring);
    }
    let path = options.run_dir.clone().unwrap_or_else(|| fresh_name(&resolved.config.cluster.run_root));
    let wiring = check(config, &path)?;
    let taken = std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some());
    if taken && !options.clean {
        return Err(RunError::Exists { path });
    }
    std::fs::create_dir_all(&path).map_err(|e| LedgerError::io("make", &path, e))?;
    check_local(&path)?;
    let path = path.canonicalize().map_err(|e| LedgerError::io("find", &path, e))?;
    let paths = RunPaths::new(&path);
    let lock = RunLock::take(&paths.launch_lock(), Duration::ZERO)?;
    if taken {
        empty(&path, &paths.launch_lock())?;
    }
    let text = resolved.to_toml()?;
    write_atomically(&paths.config(), text.as_bytes())?;
    std::fs::create_dir_all(path.join("logs")).map_err(|e| LedgerError::io("make", &path, e))?;
    let config_hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    let meta = RunMeta { run: random_id()?, numerics: wiring.numerics(), config_hash };
    drop(Ledger::create(&paths, &meta)?);
    Ok(Prepared { paths, lock, meta })
}

/// R1: everything a worker will be made from can be made.
fn check(config: Arc<crate::config::Config>, path: &Path) -> Result<Wiring, RunError> {
    let wiring = Wiring::open(config, RunId(0), path)?;
    wiring.check()?;
    Ok(wiring)
}

fn resume(path: &Path, wiring: &Wiring) -> Result<Prepared, RunError> {
    let missing = || LedgerError::Missing { path: path.to_owned() };
    let path = path.canonicalize().map_err(|_| missing())?;
    let paths = RunPaths::new(&path);
    if !paths.ledger().is_file() {
        return Err(missing().into());
    }
    let lock = RunLock::take(&paths.launch_lock(), Duration::ZERO)?;
    let meta = Ledger::open(&paths)?.meta()?;
    let now = wiring.numerics();
    if meta.numerics != now {
        return Err(RunError::Numerics { begun: meta.numerics, now });
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

/// Removes everything but the lock that is held.
fn empty(path: &Path, keep: &Path) -> Result<(), LedgerError> {
    for entry in std::fs::read_dir(path).map_err(|e| LedgerError::io("read", path, e))?.flatten() {
        let child = entry.path();
        if child == keep {
            continue;
        }
        let removed = if child.is_dir() { std::fs::remove_dir_all(&child) } else { std::fs::remove_file(&child) };
        match removed {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(LedgerError::io("remove", &child, e)),
            _ => {}
        }
    }
    Ok(())
}
