//! Writing: everything under a temporary name, synced, then one rename.
use super::manifest::{checksum_line, sha256};
use super::{
    CURSOR, CheckpointError, FOLDER, MANIFEST, MANIFEST_SUM, Manifest, OPTIMIZER, RNG, TrainState, dir_name, list, verify,
};
use cohort_actors::crash::{CHECKPOINT, SAVING, crash_point};
use cohort_model::{ModelFiles, SaveDtype, safetensors_file};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// A checkpoint on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Relative to the run directory: `checkpoints/step-N`.
    pub dir: String,
    /// SHA-256 of its `manifest.json`, hex.
    pub manifest_sha256: String,
}

/// Saves a state as `checkpoints/step-N` and then removes all but the newest `keep` checkpoints. Saving a state that is
/// already there does nothing. `model` gives the files beside the weights.
///
/// Errors: with any of them, nothing stands under the final name that did not stand there before.
pub fn save(run_dir: &Path, model: &ModelFiles, state: &TrainState, keep: usize) -> Result<Saved, CheckpointError> {
    let (folder, name) = (run_dir.join(FOLDER), dir_name(state.version));
    std::fs::create_dir_all(&folder).map_err(CheckpointError::io("make", &folder))?;
    crash_point(SAVING);
    clear_leftovers(&folder)?;
    let temporary = folder.join(format!(".{name}.partial"));
    let written = write(&temporary, model, state).and_then(|manifest| {
        crash_point(CHECKPOINT);
        put_in_place(&folder, &temporary, &name)?;
        Ok(manifest)
    });
    let manifest_sha256 = written.inspect_err(|_| {
        // The first error is the one to report; a leftover is cleared by the next save.
        let _ = std::fs::remove_dir_all(&temporary);
    })?;
    prune(run_dir, &folder, keep)?;
    Ok(Saved { dir: format!("{FOLDER}/{name}"), manifest_sha256 })
}

/// Fills a fresh directory and syncs it; gives the manifest's SHA-256.
fn write(dir: &Path, model: &ModelFiles, state: &TrainState) -> Result<String, CheckpointError> {
    let cursor: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&state.cursor_json).map_err(|e| CheckpointError::Cursor(e.to_string()))?;
    let rng = serde_json::json!({ "scheme": "counter", "seed": state.seed });
    std::fs::create_dir(dir).map_err(CheckpointError::io("make", dir))?;
    crash_point(SAVING);
    model.save(dir, &state.weights, SaveDtype::F32)?;
    crash_point(SAVING);
    safetensors_file::write_file(&dir.join(OPTIMIZER), &state.optimizer.tensors, SaveDtype::F32)?;
    write_file(&dir.join(RNG), format!("{rng}\n").as_bytes())?;
    write_file(&dir.join(CURSOR), format!("{}\n", serde_json::Value::Object(cursor)).as_bytes())?;
    let manifest = Manifest::of(dir, state.version)?.to_bytes(dir)?;
    write_file(&dir.join(MANIFEST), &manifest)?;
    write_file(&dir.join(MANIFEST_SUM), checksum_line(&manifest).as_bytes())?;
    sync_dir(dir)?;
    Ok(sha256(&manifest))
}

/// Renames a finished directory to its final name. What stood there is kept if it is the same; else the two change names
/// in one operation, so that a crash at no time leaves the name without a whole directory. A file system that cannot do that
/// has the old one removed first: a crash in between costs this checkpoint, and the run goes on from the one before it.
fn put_in_place(folder: &Path, temporary: &Path, name: &str) -> Result<(), CheckpointError> {
    let last = folder.join(name);
    if last.exists() {
        let same =
            verify(&last).is_ok() && std::fs::read(last.join(MANIFEST)).ok() == std::fs::read(temporary.join(MANIFEST)).ok();
        if same {
            return std::fs::remove_dir_all(temporary).map_err(CheckpointError::io("remove", temporary));
        }
        match exchange(temporary, &last) {
            Err(e) if cannot_exchange(&e) => remove(folder, name)?,
            exchanged => {
                crash_point(SAVING);
                exchanged.map_err(CheckpointError::io("exchange", temporary))?;
                sync_dir(folder)?;
                // What stood there before has the temporary name now.
                return std::fs::remove_dir_all(temporary).map_err(CheckpointError::io("remove", temporary));
            }
        }
    }
    std::fs::rename(temporary, &last).map_err(CheckpointError::io("rename", temporary))?;
    sync_dir(folder)
}

fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Whether the file system (or the kernel) has no exchange of names.
fn cannot_exchange(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP].iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn prune(run_dir: &Path, folder: &Path, keep: usize) -> Result<(), CheckpointError> {
    let all = list(run_dir)?;
    for (version, _) in all.iter().rev().skip(keep.max(1)) {
        remove(folder, &dir_name(*version))?;
    }
    Ok(())
}

/// Takes the final name away first, so that a crash in the middle leaves no half of a checkpoint under it.
fn remove(folder: &Path, name: &str) -> Result<(), CheckpointError> {
    let (from, to) = (folder.join(name), folder.join(format!(".{name}.removed")));
    std::fs::rename(&from, &to).map_err(CheckpointError::io("rename", &from))?;
    crash_point(SAVING);
    sync_dir(folder)?;
    std::fs::remove_dir_all(&to).map_err(CheckpointError::io("remove", &to))
}

/// Removes what a crash left: directories of [`save`] and [`remove`] under their temporary names.
fn clear_leftovers(folder: &Path) -> Result<(), CheckpointError> {
    for entry in std::fs::read_dir(folder).map_err(CheckpointError::io("list", folder))? {
        let path = entry.map_err(CheckpointError::io("list", folder))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.starts_with(".step-") && (name.ends_with(".partial") || name.ends_with(".removed")) {
            std::fs::remove_dir_all(&path).map_err(CheckpointError::io("remove", &path))?;
        }
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let write = || -> io::Result<()> {
        crash_point(SAVING);
        let mut file = File::create(path)?;
        crash_point(SAVING);
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(CheckpointError::io("write", path))
}

fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    crash_point(SAVING);
    File::open(dir).and_then(|d| d.sync_all()).map_err(CheckpointError::io("sync", dir))
}
