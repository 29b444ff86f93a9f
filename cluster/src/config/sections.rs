//! The sections that belong to the cluster itself; the others are the roles' own.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU16;
use std::path::PathBuf;

/// How many workers run where, and what they may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Rollout workers: how many generate groups at the same time. The weights after a step do not depend on it.
    pub rollout: NonZeroU16,
    /// Reward workers: how many grade groups at the same time.
    pub reward: NonZeroU16,
    /// Learner ranks: how many share the groups of a step, each with weights, gradients and moments of its own. `training.logical_shards` must be
    /// their number times 1, 2, 4, ..; the weights after a step do not depend on it. Default 1.
    pub learner: NonZeroU16,
    /// Groups that one rollout worker generates at once; their samples share the engine's batch.
    pub capacity: NonZeroU16,
    /// Compute threads of each engine; 0 takes all cores.
    pub threads: u16,
    /// Run coordinator and workers as processes of their own that talk QUIC, instead of inside the launching process.
    pub processes: bool,
    /// Folder in which run directories are made. Must be on a local disk: the ledger is no friend of NFS or Lustre.
    pub run_root: PathBuf,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        const ONE: NonZeroU16 = NonZeroU16::MIN;
        Self {
            rollout: ONE,
            reward: ONE,
            learner: ONE,
            capacity: ONE.saturating_add(7),
            threads: 0,
            processes: false,
            run_root: PathBuf::from("runs"),
        }
    }
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is written about a run besides its metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoggingConfig {
    /// Least level written to `logs/`, as `info` or `info,cohort_actors=debug` (the filter syntax of tracing).
    pub level: String,
    /// How a log line is written.
    pub format: LogFormat,
    /// Steps between two progress lines where stderr is not a terminal.
    pub every: NonZeroU16,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text, every: NonZeroU16::MIN.saturating_add(9) }
    }
}
