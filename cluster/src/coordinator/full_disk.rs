//! A disk without room, as people and programs are told of it: which path, how much is free, how long it is waited for.
use super::actor::Core;
use super::{CoordinatorArgs, CoordinatorError};
use crate::controller::Refused;
use crate::ledger::place::free_bytes;
use crate::ledger::{LedgerError, RunPaths};
use crate::progress::{FullDisk, Progress};
use cohort_actors::Shutdown;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two looks of a coordinator that cannot begin.
const LOOK: Duration = Duration::from_secs(1);

impl Core {
    /// The run pauses.
    pub(super) fn no_room(&self, what: &Refused, patience: Duration) {
        let disk = described(path_of(&self.args.paths, what), Duration::ZERO, patience);
        let (path, free_bytes, patience_s) = (disk.path.display(), disk.free_bytes, disk.patience_s);
        tracing::warn!(target: "cohort::coordinator", %path, free_bytes, patience_s, "disk_full");
        self.told.news.emit(Progress::Notice(sentence(&disk)));
    }

    /// The run goes on.
    pub(super) fn room_again(&self, what: &Refused, waited: Duration) {
        let path = path_of(&self.args.paths, what);
        let waited_s = waited.as_secs_f64();
        tracing::info!(target: "cohort::coordinator", path = %path.display(), waited_s, "room_again");
        self.told.news.emit(Progress::Notice(format!("room again for {} after {waited_s:.1} s: going on", path.display())));
    }

    /// For `status.json`.
    pub(super) fn full_disk(&self, now: Instant) -> Option<FullDisk> {
        let (what, waiting) = self.state.lacks_room()?;
        let waited = now.saturating_duration_since(waiting.since);
        Some(described(path_of(&self.args.paths, what), waited, self.state.plan().deadlines.full_disk))
    }
}

/// Does something as often as there is no room for it, until the run's patience is at an end or it was asked to stop.
pub(super) async fn patiently<T, F: Future<Output = Result<T, CoordinatorError>>>(
    args: &CoordinatorArgs,
    shutdown: &Shutdown,
    mut attempt: impl FnMut() -> F,
) -> Result<T, CoordinatorError> {
    let (begun, patience) = (Instant::now(), args.plan.deadlines.full_disk);
    let mut said = false;
    loop {
        let error = match attempt().await {
            Err(CoordinatorError::Ledger(error @ LedgerError::NoSpace { .. })) => error,
            other => return other,
        };
        if begun.elapsed() >= patience || shutdown.is_triggered() {
            return Err(error.into());
        }
        if !said && let LedgerError::NoSpace { path } = &error {
            let disk = described(path.clone(), Duration::ZERO, patience);
            tracing::warn!(target: "cohort::coordinator", path = %path.display(), free_bytes = disk.free_bytes, "disk_full");
            args.progress.emit(Progress::Notice(sentence(&disk)));
            said = true;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = shutdown.wait() => {}
        }
    }
}

fn path_of(paths: &RunPaths, what: &Refused) -> PathBuf {
    match what {
        Refused::Ledger(path) => path.clone(),
        Refused::Checkpoint => paths.checkpoints(),
    }
}

fn described(path: PathBuf, waited: Duration, patience: Duration) -> FullDisk {
    FullDisk { free_bytes: free_bytes(&path), path, waited_s: waited.as_secs(), patience_s: patience.as_secs() }
}

fn sentence(disk: &FullDisk) -> String {
    let FullDisk { path, free_bytes, patience_s, .. } = disk;
    let free = free_bytes.map_or_else(|| "an unknown number of".to_owned(), |bytes| bytes.to_string());
    format!(
        "no space left for {} ({free} bytes free): paused, nothing further begins; goes on by itself when there is room, ends after \
         {patience_s} s (cluster.full_disk_patience_s)",
        path.display()
    )
}
