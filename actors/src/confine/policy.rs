//! What a confined program may do, as its host says it. Travels to the keeper and the last step as JSON.
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One program and what it may do. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// The file to execute, see [`super::find`].
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it runs; read by it.
    pub working_dir: PathBuf,
    /// Read by it too: files and folders with everything inside.
    pub read: Vec<PathBuf>,
    /// Read and written by it, beside its scratch folder.
    pub write: Vec<PathBuf>,
    /// Never read by it, even inside one of the above.
    #[serde(default)]
    pub hidden: Vec<PathBuf>,
    /// Internet sockets.
    pub network: bool,
    /// How much of everything.
    pub limits: Limits,
    /// Its scratch folder; the keeper's.
    #[serde(default)]
    pub(super) scratch: Option<PathBuf>,
    /// Landlock's version to build on.
    #[serde(default)]
    pub(super) landlock_abi: u32,
}

impl Confinement {
    /// A program that reads its folder and itself.
    #[must_use]
    pub fn new(program: PathBuf, args: Vec<String>, working_dir: PathBuf, limits: Limits) -> Self {
        let (read, write, hidden) = (Vec::new(), Vec::new(), Vec::new());
        Self { program, args, working_dir, read, write, hidden, network: false, limits, scratch: None, landlock_abi: 0 }
    }
}

/// How much a confined program may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Processes and threads at once.
    pub processes: u32,
    /// Address space of each process and resident memory of all together, in bytes; `None` has no limit.
    pub memory: Option<u64>,
    /// Bytes in the scratch folder, and in any one file.
    pub scratch: u64,
}
