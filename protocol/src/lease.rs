//! What a rollout worker is asked for.
use crate::{AttemptId, Epoch, GroupId, PolicyVersion};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// How tokens are drawn: penalties, then temperature, then top-k, top-p, min-p. Training defaults: temperature 1, all else off.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Logits are divided by this. 0 with `greedy`.
    pub temperature: f32,
    /// Take the most likely token (the lowest id among equals); `temperature` then only scales log-probs.
    pub greedy: bool,
    /// Sampled tokens of one assistant turn, at most.
    pub max_new_tokens: u32,
    /// Only tokens with one of so many largest logits; 0 is off.
    pub top_k: u32,
    /// Only the fewest most likely tokens of this probability; 1 is off.
    pub top_p: f32,
    /// Only tokens at least so many times as likely as the most likely one; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens of the context; 1 is off.
    pub repetition_penalty: f32,
    /// Taken off the logit of a token that this assistant turn has already; 0 is off.
    pub presence_penalty: f32,
    /// Taken off the logit of a token for each time that this assistant turn has it; 0 is off.
    pub frequency_penalty: f32,
}

impl SamplingParams {
    /// Draws from the model's own distribution at a temperature.
    #[must_use]
    pub fn plain(temperature: f32, max_new_tokens: u32) -> Self {
        Self {
            temperature,
            greedy: false,
            max_new_tokens,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }
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
