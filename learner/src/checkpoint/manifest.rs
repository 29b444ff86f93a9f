//! What a checkpoint consists of, to the bit.
use super::{CheckpointError, MANIFEST, MANIFEST_SUM, REQUIRED, version_of};
use cohort_protocol::PolicyVersion;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The layout described by [`super`].
const FORMAT: u32 = 1;

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the layout, 1.
    pub format: u32,
    /// Policy version of the state.
    pub version: PolicyVersion,
    /// Every other file by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// One file's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Length.
    pub bytes: u64,
    /// SHA-256 of its content, hex.
    pub sha256: String,
}

impl Manifest {
    /// Reads all files of a directory.
    pub(super) fn of(dir: &Path, version: PolicyVersion) -> Result<Self, CheckpointError> {
        let mut files = BTreeMap::new();
        for name in names(dir)? {
            let entry = FileEntry::of(&dir.join(&name))?;
            files.insert(name, entry);
        }
        Ok(Self { format: FORMAT, version, files })
    }

    /// Its bytes.
    pub(super) fn to_bytes(&self, dir: &Path) -> Result<Vec<u8>, CheckpointError> {
        let text = serde_json::to_string_pretty(self).map_err(|e| CheckpointError::damaged(dir, e.to_string()))?;
        Ok((text + "\n").into_bytes())
    }
}

impl FileEntry {
    fn of(path: &Path) -> Result<Self, CheckpointError> {
        let mut file = File::open(path).map_err(CheckpointError::io("read", path))?;
        let (mut hasher, mut buffer, mut bytes) = (Sha256::new(), vec![0; 1 << 18], 0);
        loop {
            match file.read(&mut buffer).map_err(CheckpointError::io("read", path))? {
                0 => return Ok(Self { bytes, sha256: hex(&hasher.finalize()) }),
                n => {
                    hasher.update(&buffer[..n]);
                    bytes += n as u64;
                }
            }
        }
    }
}

/// Checks a checkpoint directory against its manifest, bit by bit, and its name against the manifest's version.
///
/// Errors: [`CheckpointError::Damaged`] for whatever is missing, extra, swapped, cut or altered.
pub fn verify(dir: &Path) -> Result<Manifest, CheckpointError> {
    let damaged = |why: String| Err(CheckpointError::damaged(dir, why));
    let read = |name: &str| std::fs::read(dir.join(name)).map_err(|e| CheckpointError::damaged(dir, format!("{name}: {e}")));
    let (bytes, sum) = (read(MANIFEST)?, read(MANIFEST_SUM)?);
    if sum != checksum_line(&bytes).into_bytes() {
        return damaged(format!("{MANIFEST} does not have the SHA-256 in {MANIFEST_SUM}"));
    }
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|e| CheckpointError::damaged(dir, format!("{MANIFEST}: {e}")))?;
    if manifest.format != FORMAT {
        return damaged(format!("its format is {}, this build reads {FORMAT}", manifest.format));
    }
    if let Some(named) = version_of(dir).filter(|&v| v != manifest.version) {
        return damaged(format!("its name says version {named}, its manifest {}", manifest.version));
    }
    if let Some(names) = REQUIRED.iter().find(|names| !names.iter().any(|name| manifest.files.contains_key(*name))) {
        return damaged(format!("{} is not in the manifest", names.join(" or ")));
    }
    let mut there = names(dir)?;
    there.remove(MANIFEST);
    there.remove(MANIFEST_SUM);
    if let Some(extra) = there.iter().find(|name| !manifest.files.contains_key(*name)) {
        return damaged(format!("{extra} is not in the manifest; remove it"));
    }
    for (name, want) in &manifest.files {
        if !there.contains(name) {
            return damaged(format!("{name} is missing"));
        }
        let got = FileEntry::of(&dir.join(name))?;
        if got != *want {
            let (a, b) = (got.bytes, want.bytes);
            return damaged(if a == b { format!("{name} has changed") } else { format!("{name} has {a} bytes instead of {b}") });
        }
    }
    Ok(manifest)
}

/// The line that `sha256sum` would write.
pub(super) fn checksum_line(manifest: &[u8]) -> String {
    format!("{}  {MANIFEST}\n", sha256(manifest))
}

/// SHA-256, hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn names(dir: &Path) -> Result<BTreeSet<String>, CheckpointError> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(CheckpointError::io("list", dir))? {
        let entry = entry.map_err(CheckpointError::io("list", dir))?;
        names.insert(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from(DIGITS[usize::from(d)])).collect()
}
