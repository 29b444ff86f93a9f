//! Reading: verify, then load; and which one to load.
use super::manifest::{sha256, verify};
use super::{ADAPTER_WEIGHTS, CONFIG, CURSOR, CheckpointError, OPTIMIZER, OptimizerState, RNG, TrainState, WEIGHTS, list};
use cohort_model::{ModelError, ModelFiles, WeightSet, hf, safetensors_file};
use cohort_protocol::PolicyVersion;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Verifies and loads a checkpoint of this model, or of its adapters.
pub fn load(dir: &Path, model: &ModelFiles) -> Result<TrainState, CheckpointError> {
    let version = verify(dir)?.version;
    let foreign = |what: &str| {
        let what = what.to_owned();
        move |e: cohort_model::weights::ShapeError| CheckpointError::Foreign {
            dir: dir.to_path_buf(),
            why: format!("{what}: {e}"),
        }
    };
    let weights = model.saved(dir).map_err(|error| match error {
        ModelError::Shape { source, .. } => foreign("weights")(source),
        other => other.into(),
    })?;
    let trained = model.trained();
    let optimizer = optimizer(dir)?;
    let (first, second, updates) = optimizer.into_parts();
    first.fits(&trained).map_err(foreign("first moments"))?;
    second.fits(&trained).map_err(foreign("second moments"))?;
    let optimizer = OptimizerState::new(first, second, updates);
    let rng: Rng = serde_json::from_slice(&read(dir, RNG)?).map_err(|e| CheckpointError::damaged(dir, format!("{RNG}: {e}")))?;
    let cursor_json = String::from_utf8_lossy(&read(dir, CURSOR)?).trim_end().to_owned();
    Ok(TrainState { version, weights, optimizer, seed: rng.seed, cursor_json })
}

#[derive(Deserialize)]
struct Rng {
    seed: u64,
}

/// The checkpoint to resume from, and those that are not good enough.
#[derive(Debug, Default)]
pub struct LastGood {
    /// The newest that verifies, if any.
    pub found: Option<(PolicyVersion, PathBuf)>,
    /// Newer ones that do not, with the reason, newest first.
    pub rejected: Vec<CheckpointError>,
}

/// Looks for the newest checkpoint of a run that verifies.
pub fn last_good(run_dir: &Path) -> Result<LastGood, CheckpointError> {
    let mut result = LastGood::default();
    for (version, dir) in list(run_dir)?.into_iter().rev() {
        match verify(&dir) {
            Ok(_) => {
                result.found = Some((version, dir));
                break;
            }
            Err(error) => result.rejected.push(error),
        }
    }
    Ok(result)
}

/// What two runs compare: SHA-256, hex, of each part of a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashes {
    /// Over name, shape, dtype and values of the tensors sorted by name.
    pub weights: String,
    /// The same over the moments and the number of updates.
    pub optimizer: String,
    /// Of `rng.json`.
    pub rng: String,
    /// Of `cursor.json`.
    pub cursor: String,
}

/// Verifies a checkpoint and hashes its parts.
pub fn hash(dir: &Path) -> Result<Hashes, CheckpointError> {
    verify(dir)?;
    Ok(Hashes {
        weights: trained(dir)?.sha256(),
        optimizer: optimizer(dir)?.tensors.sha256(),
        rng: sha256(&read(dir, RNG)?),
        cursor: sha256(&read(dir, CURSOR)?),
    })
}

/// The weights or adapters of a verified checkpoint.
fn trained(dir: &Path) -> Result<WeightSet, CheckpointError> {
    let adapter = dir.join(ADAPTER_WEIGHTS);
    if adapter.is_file() {
        return Ok(safetensors_file::read_file(&adapter)?);
    }
    let place = dir.join(CONFIG).display().to_string();
    let object =
        serde_json::from_slice(&read(dir, CONFIG)?).map_err(|e| CheckpointError::damaged(dir, format!("{CONFIG}: {e}")))?;
    let weights = hf::canonical(&hf::spec_from_config(&object, &place)?, safetensors_file::read_file(&dir.join(WEIGHTS))?);
    weights.map_err(|e| CheckpointError::damaged(dir, format!("{WEIGHTS}: {e}")))
}

fn optimizer(dir: &Path) -> Result<OptimizerState, CheckpointError> {
    let tensors = safetensors_file::read_file(&dir.join(OPTIMIZER))?;
    OptimizerState::read(tensors).ok_or_else(|| CheckpointError::damaged(dir, format!("{OPTIMIZER} has no update count")))
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>, CheckpointError> {
    let path = dir.join(name);
    std::fs::read(&path).map_err(CheckpointError::io("read", &path))
}
