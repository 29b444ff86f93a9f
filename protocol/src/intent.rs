//! What one step consumes and what came of it. A step is a pure function of base weights and intent.
use crate::{GroupId, PolicyVersion, ScoredTrajectory, StepId};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// A complete group with its advantages, one a sample, in sample order.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct GroupPayload {
    /// The group.
    pub group: GroupId,
    /// Its samples in order.
    pub samples: Vec<ScoredTrajectory>,
    /// Advantage of each sample.
    pub advantages: Vec<f64>,
}

/// Committed to the ledger before the learner is asked for the step.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct StepIntent {
    /// The step.
    pub step: StepId,
    /// Weights it starts from: always version `step - 1`.
    pub base: PolicyVersion,
    /// Its groups, in the order the learner reads them.
    pub groups: Vec<GroupId>,
    /// BLAKE3 of each group's payload (trajectories and scores as journalled), hex, in the same order.
    pub digests: Vec<String>,
}

/// Written after the step. Doing the step again from the same intent gives the same commit.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct StepCommit {
    /// The step.
    pub step: StepId,
    /// Weights it made.
    pub version: PolicyVersion,
    /// SHA-256 over the canonical weights, hex, where it was asked for (it costs 2 GB/s a core), else empty.
    pub weights_sha256: String,
    /// Cheap 64-bit digest over all parameters' bits in canonical order, always present.
    pub weights_digest: u64,
    /// Metrics by the field's names (`docs/algorithms.md`).
    pub metrics: Vec<(String, f64)>,
}
