//! Checkpoints: one directory each, `checkpoints/step-N` in the run directory, complete or not there.
//!
//! | file | what |
//! |---|---|
//! | `model.safetensors`, `config.json`, `tokenizer.json`, .. | the policy in the canonical layout, as transformers loads it |
//! | `adapter_model.safetensors`, `adapter_config.json` | with `model.lora` instead of the first two: the adapters, as PEFT loads them |
//! | `optimizer.safetensors` | AdamW's moments (`exp_avg.*`, `exp_avg_sq.*`) and the number of updates |
//! | `rng.json` | the run's seed: every draw is keyed by it and by its own place, so there is no other state |
//! | `cursor.json` | where the coordinator stands in the data |
//! | `manifest.json` | the version, and length and SHA-256 of each file above |
//! | `manifest.sha256` | SHA-256 of `manifest.json`, as `sha256sum -c` reads it |
//!
//! Invariants
//! - **C1** a directory under its final name is complete and synced: it was written under another name, synced, renamed.
//! - **C2** nothing is loaded that was not verified first: a missing, extra, swapped, cut or altered file is an error.
//! - **C3** a failed save leaves nothing under the final name and the older checkpoints as they were; old ones are removed
//!   only after a newer one stands.
//! - **C4** equal states give equal bytes: no times, no host names.
mod load;
mod manifest;
mod save;

pub use load::{Hashes, LastGood, hash, last_good, load};
pub use manifest::{Manifest, verify};
pub use save::{Saved, save};

use cohort_model::{ModelError, Tensor, WeightSet};
use cohort_protocol::PolicyVersion;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Folder of checkpoints in a run directory.
pub const FOLDER: &str = "checkpoints";
const OPTIMIZER: &str = "optimizer.safetensors";
const RNG: &str = "rng.json";
const CURSOR: &str = "cursor.json";
const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const MANIFEST: &str = "manifest.json";
const MANIFEST_SUM: &str = "manifest.sha256";
/// Files that a checkpoint cannot be without; of each line, one.
const REQUIRED: [&[&str]; 6] =
    [&[WEIGHTS, ADAPTER_WEIGHTS], &[CONFIG, ADAPTER_CONFIG], &["tokenizer.json"], &[OPTIMIZER], &[RNG], &[CURSOR]];

/// Everything that the next step depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
    /// The version that the weights are.
    pub version: PolicyVersion,
    /// The policy, canonical layout.
    pub weights: WeightSet,
    /// Moments and update count.
    pub optimizer: OptimizerState,
    /// The run's seed.
    pub seed: u64,
    /// Data cursor and counters of the coordinator, a JSON object.
    pub cursor_json: String,
}

/// AdamW's memory, named as it stands in `optimizer.safetensors`.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerState {
    tensors: WeightSet,
    updates: u64,
}

const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";
/// Four digits to the base 65536, lowest first: exact in f32 for every count.
const UPDATES: &str = "updates";

impl OptimizerState {
    /// From the engine's moments.
    #[must_use]
    pub fn new(first: WeightSet, second: WeightSet, updates: u64) -> Self {
        let mut tensors = BTreeMap::new();
        tensors.extend(first.0.into_iter().map(|(name, t)| (format!("{FIRST}{name}"), t)));
        tensors.extend(second.0.into_iter().map(|(name, t)| (format!("{SECOND}{name}"), t)));
        let digits = (0..4).map(|i| f32::from((updates >> (16 * i) & 0xffff) as u16)).collect();
        tensors.insert(UPDATES.to_owned(), Tensor { shape: vec![4], data: digits });
        Self { tensors: WeightSet(tensors), updates }
    }

    /// First moments, second moments, updates done.
    #[must_use]
    pub fn into_parts(self) -> (WeightSet, WeightSet, u64) {
        let (mut first, mut second) = (WeightSet::default(), WeightSet::default());
        for (name, tensor) in self.tensors.0 {
            if let Some(name) = name.strip_prefix(FIRST) {
                first.0.insert(name.to_owned(), tensor);
            } else if let Some(name) = name.strip_prefix(SECOND) {
                second.0.insert(name.to_owned(), tensor);
            }
        }
        (first, second, self.updates)
    }

    /// Updates done.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    fn read(tensors: WeightSet) -> Option<Self> {
        let digits = &tensors.0.get(UPDATES)?.data;
        let mut updates = 0;
        for &digit in digits.iter().rev() {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked right after")]
            let whole = digit as u16;
            if f32::from(whole) != digit || digits.len() != 4 {
                return None;
            }
            updates = updates << 16 | u64::from(whole);
        }
        Some(Self { tensors, updates })
    }
}

/// The checkpoints of a run, oldest first, by their names alone.
pub fn list(run_dir: &Path) -> Result<Vec<(PolicyVersion, PathBuf)>, CheckpointError> {
    let folder = run_dir.join(FOLDER);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(CheckpointError::io("list", &folder)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(CheckpointError::io("list", &folder))?.path();
        if let Some(version) = version_of(&path) {
            found.push((version, path));
        }
    }
    found.sort();
    Ok(found)
}

/// `step-N` of a version.
#[must_use]
pub fn dir_name(version: PolicyVersion) -> String {
    format!("step-{version}")
}

fn version_of(dir: &Path) -> Option<PolicyVersion> {
    let number = dir.file_name()?.to_str()?.strip_prefix("step-")?;
    number.parse().ok().map(PolicyVersion)
}

/// Why a checkpoint was not written or is not used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The disk or the system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), space_remedy(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The policy's files could not be written or read.
    #[error("checkpoint: {_0}{}", model_remedy(_0))]
    Model(#[from] ModelError),
    /// What is on the disk is not what was written.
    #[error("checkpoint {} is damaged: {why}; it is not used, an older one is", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// Which file and how.
        why: String,
    },
    /// The checkpoint is of another model or run.
    #[error("checkpoint {} does not fit: {why}", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// How.
        why: String,
    },
    /// The coordinator's cursor is not a JSON object.
    #[error("cursor is not a JSON object: {0}")]
    Cursor(String),
}

impl CheckpointError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    fn damaged(dir: &Path, why: impl Into<String>) -> Self {
        Self::Damaged { dir: dir.to_path_buf(), why: why.into() }
    }

    /// Whether the disk, its quota or a file-size limit is exhausted: asking again helps once there is room.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Model(ModelError::Io { source, .. }) => out_of_space(source),
            _ => false,
        }
    }
}

fn out_of_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn model_remedy(error: &ModelError) -> &'static str {
    if let ModelError::Io { source, .. } = error { space_remedy(source) } else { "" }
}

fn space_remedy(error: &io::Error) -> &'static str {
    if out_of_space(error) { "; free space on this disk, the last good checkpoint is kept" } else { "" }
}
