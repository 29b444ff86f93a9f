//! Where a run lives: names inside its directory, the lock that keeps runs apart, file systems that are refused.
use super::error::LedgerError;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names inside a run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPaths {
    root: PathBuf,
}

impl RunPaths {
    /// Of the run in `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }
    /// The directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The database.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.sqlite")
    }
    /// Accepted deliveries.
    #[must_use]
    pub fn segments(&self) -> PathBuf {
        self.root.join("segments")
    }
    /// The resolved config.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }
    /// One line a step.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }
    /// One line an evaluation round.
    #[must_use]
    pub fn evaluations(&self) -> PathBuf {
        self.root.join("evaluations.jsonl")
    }
    /// Checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }
    /// State while it runs.
    #[must_use]
    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }
    /// Processes of the host, written by the node agent.
    #[must_use]
    pub fn agent(&self) -> PathBuf {
        self.root.join("agent.json")
    }
    /// Where the running run can be spoken to, written by the node agent.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.root.join("control.json")
    }
    /// The report at the end.
    #[must_use]
    pub fn summary(&self) -> PathBuf {
        self.root.join("summary.json")
    }
    /// Held by the launching process.
    #[must_use]
    pub fn launch_lock(&self) -> PathBuf {
        self.root.join("launch.lock")
    }
    /// Held by the coordinator.
    #[must_use]
    pub fn ledger_lock(&self) -> PathBuf {
        self.root.join("ledger.lock")
    }
    /// Held by the keeper of this host.
    #[must_use]
    pub fn keeper_lock(&self) -> PathBuf {
        self.root.join("keeper.lock")
    }
    /// The keeper's log of a ledger that several hosts keep.
    #[must_use]
    pub fn keeper_log(&self) -> PathBuf {
        self.root.join("keeper.sqlite")
    }
    /// Where this host stands among the keepers, written by its own.
    #[must_use]
    pub fn keeper_status(&self) -> PathBuf {
        self.root.join("keeper.json")
    }
    /// On a host that joined: where the run's coordinator is.
    #[must_use]
    pub fn coordinator(&self) -> PathBuf {
        self.root.join("coordinator")
    }
    /// Logs of one launch.
    #[must_use]
    pub fn logs(&self, attempt: u32) -> PathBuf {
        self.root.join("logs").join(format!("attempt-{attempt}"))
    }
}

/// An exclusive lock on a run, released when dropped and by the kernel when the process dies.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock, waiting at most `patience` for a holder that is on its way out.
    ///
    /// Blocks. Errors: [`LedgerError::InUse`] naming the holder.
    pub fn take(path: &Path, patience: Duration) -> Result<Self, LedgerError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| LedgerError::io("open", path, e))?;
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    // The name is a courtesy; the lock is what counts.
                    let _ = file.read_to_string(&mut holder);
                    let holder = if holder.trim().is_empty() { "unknown".to_owned() } else { holder.trim().to_owned() };
                    let run = path.parent().unwrap_or(path).to_owned();
                    return Err(LedgerError::InUse { path: run, holder });
                }
                Err(e) => return Err(LedgerError::io("lock", path, e.into())),
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(|e| LedgerError::io("write", path, e))?;
        Ok(Self { _file: file })
    }
}

/// Refuses file systems without reliable locks and syncs.
pub fn check_local(dir: &Path) -> Result<(), LedgerError> {
    let stat = rustix::fs::statfs(dir).map_err(|e| LedgerError::io("look at", dir, e.into()))?;
    // Magic numbers of linux/magic.h and of the file systems' own headers.
    let kind = match stat.f_type as u32 {
        0x6969 => "NFS",
        0x0BD0_0BD0 => "Lustre",
        0xFF53_4D42 | 0xFE53_4D42 | 0x517B => "SMB",
        0x4750_4653 => "GPFS",
        0x0000_7461 => "OCFS2",
        0x1983_0326 => "BeeGFS",
        0x00C3_6400 => "CephFS",
        _ => return Ok(()),
    };
    Err(LedgerError::RemoteFileSystem { path: dir.to_owned(), kind })
}

/// Makes names in a directory durable.
pub fn sync_dir(dir: &Path) -> Result<(), LedgerError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| LedgerError::io("sync", dir, e))
}

/// Replaces a file whole: readers see the old bytes or the new ones. Not synced: for reports, not for records.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), LedgerError> {
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    std::fs::write(&draft, bytes).map_err(|e| {
        // What there was room for is given back; where even that fails, the next draft writes over it.
        let _ = std::fs::remove_file(&draft);
        LedgerError::io("write", &draft, e)
    })?;
    std::fs::rename(&draft, path).map_err(|e| LedgerError::io("name", path, e))
}

/// Bytes of a file's last page that are kept free, at least, by [`write_with_spare`].
const SPARE: usize = 1024;
/// What disks give out.
const PAGE: usize = 4096;

/// Replaces a text whole, as [`write_atomically`], with blanks behind it. Where the disk is full it is written over the old
/// one, which takes no room: for that the blanks are there. A reader may then see some of both.
pub fn write_with_spare(path: &Path, text: &[u8]) -> Result<(), LedgerError> {
    let mut padded = text.to_vec();
    padded.resize((text.len() + SPARE).next_multiple_of(PAGE) - 1, b' ');
    padded.push(b'\n');
    let Err(error) = write_atomically(path, &padded) else { return Ok(()) };
    let size = path.metadata().map_or(0, |meta| meta.len());
    let room = usize::try_from(size).unwrap_or(usize::MAX);
    if !matches!(error, LedgerError::NoSpace { .. }) || room < text.len() + 1 {
        return Err(error);
    }
    padded.truncate(text.len());
    padded.resize(room - 1, b' ');
    padded.push(b'\n');
    let over = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(&padded));
    over.map_err(|e| LedgerError::io("write over", path, e))
}

/// Free bytes, for this user, of the disk that a path is on; `None`: the system does not say.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = path.ancestors().find_map(|place| rustix::fs::statvfs(place).ok())?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_with_spare_room_is_read_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        for length in [0, 1, 3000, 4096, 9000] {
            let text = serde_json::to_vec(&"x".repeat(length)).unwrap();
            write_with_spare(&path, &text).unwrap();
            let written = std::fs::read(&path).unwrap();
            assert!(written.len().is_multiple_of(PAGE) && written.len() >= text.len() + SPARE, "{length}: {}", written.len());
            assert_eq!(serde_json::from_slice::<String>(&written).unwrap().len(), length);
        }
    }

    #[test]
    fn a_second_taker_is_refused_and_the_holder_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = RunPaths::new(dir.path()).launch_lock();
        let first = RunLock::take(&path, Duration::ZERO).unwrap();
        match RunLock::take(&path, Duration::from_millis(30)) {
            Err(LedgerError::InUse { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(first);
        RunLock::take(&path, Duration::ZERO).unwrap();
    }
}
