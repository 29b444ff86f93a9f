//! What a rollout worker is asked for.
use crate::{AttemptId, Epoch, GroupId, PolicyVersion};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// How tokens are drawn. Training defaults: temperature 1, nothing truncated.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Logits are divided by this. 0 with `greedy`.
    pub temperature: f32,
    /// Take the most likely token (the lowest id among equals); `temperature` then only scales log-probs.
    pub greedy: bool,
    /// Sampled tokens of one assistant turn, at most.
    pub max_new_tokens: u32,
}

/// What the group is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeasePurpose {
    /// Consumed by a step; accounted for in the ledger.
    Train,
    /// Held-out evaluation round; scored, reported, never consumed. `GroupId` counts the round's prompts from 0.
    Eval {
        /// Step at which the round was started (0: before training).
        step: u64,
        /// Greedy decoding.
        greedy: bool,
    },
}

/// A row of the data set, as the environment reads it.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct SampledItem {
    /// Row number in the split.
    pub row: u64,
    /// The row as a JSON object: `prompt` or `messages`, `answer`, or a scenario, and whatever else the reward wants.
    pub json: String,
}

/// Permission, fenced by `epoch` and `attempt`, to generate one group.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct GroupLease {
    /// Coordinator incarnation that gave it.
    pub epoch: Epoch,
    /// Training or evaluation.
    pub purpose: LeasePurpose,
    /// The group.
    pub group: GroupId,
    /// Which attempt at it.
    pub attempt: AttemptId,
    /// Policy that must generate it; with `follows` the oldest that may.
    pub version: PolicyVersion,
    /// Whether newer weights are to be taken in the middle of it, so that tokens are of several versions.
    pub follows: bool,
    /// Number of samples.
    pub samples: u16,
    /// The prompt.
    pub item: SampledItem,
    /// Key of every random draw: (seed, group, sample, position, purpose).
    pub seed: u64,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
}
