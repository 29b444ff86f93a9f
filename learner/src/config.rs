//! `[training]`: what a user writes. [`crate::training::Training`] is what it means, checked.
use crate::schedule::Decay;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How the policy is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Steps of the run; each consumes `groups_per_step` groups. Default 100.
    pub steps: u64,
    /// Groups (prompts) of one step. Default 4.
    pub groups_per_step: u32,
    /// Samples of one group. Default 16; at least 2.
    pub group_size: u16,
    /// Learning rate at the end of warm-up. Default 5e-6.
    pub learning_rate: f64,
    /// Learning rate after warm-up: "constant", "linear" or "cosine" to 0. Default "cosine".
    pub schedule: Decay,
    /// Part of all optimizer updates during which the learning rate rises to its peak, 0 to 1. Default 0.1.
    pub warmup_ratio: f64,
    /// Gradients are scaled down to this L2 norm; 0 leaves them as they are. Default 1.
    pub max_grad_norm: f64,
    /// Policy versions that may lie between the step's base and the oldest token it consumes. 0 is synchronous: the weights are
    /// the same bits for any number of workers. Above 0 rollout workers do not wait for the learner; what is consumed when is
    /// recorded, and `cluster replay` takes it again to the same bits. Default 0.
    pub max_staleness: u64,
    /// Sequences under way keep their keys and values when new weights come, instead of computing them anew. Their further
    /// tokens are inexact: needs a `correction`. Default false.
    pub keep_stale_kv: bool,
    /// Optimizer updates on the groups of one step. Default 1 (exactly on-policy).
    pub inner_epochs: u32,
    /// Tokens computed together by the learner; a longer sequence goes alone. Part of the run's numerics. Default 4096.
    pub micro_batch_tokens: u32,
    /// Parts of a step's groups whose gradients are accumulated apart and then summed in one fixed tree. Learner ranks
    /// (`cluster.learner`) share them: equal values give equal bits for any number of ranks. At most `groups_per_step`. Part of
    /// the run's numerics. Default 1.
    pub logical_shards: u32,
    /// Every learner rank keeps AdamW's moments of a part of the parameters, updates that part and gives it to the others (ZeRO-1):
    /// 8 + 8 / ranks bytes a parameter instead of 16; the bits stay the same. A rank that is lost takes its part along: a checkpoint is
    /// loaded and the steps since are taken again. Needs `cluster.learner` above 1; may change at a resume. Default false.
    pub shard_optimizer: bool,
    /// Compute what the samples of a group have in common before their first sampled token, the prompt, once, forward and
    /// backward. Part of the run's numerics. Default true.
    pub share_prompts: bool,
    /// Keep only what goes into each block for the backward pass and compute the rest again: a fraction of the activations'
    /// memory for one more forward pass; the bits stay the same. Needs `model.engine = "native"`. Default false.
    pub recompute_activations: bool,
    /// Megabytes for what sampling computes in the learner's own process: a micro-batch whose tokens are all there is not computed
    /// forward again; the bits stay the same. Where a step does not fit, what was sampled last is kept. Only with
    /// `max_staleness = 0`, `model.engine = "native"` and rollout workers that share the learner's engine; 0 turns it off.
    /// Default 1024.
    pub reuse_sampling_mb: u32,
    /// Every so many steps the learner computes its forward pass in full all the same, so that equal log-probs are seen and do not
    /// only follow. 0 never does. Default 50.
    pub recheck_interval: u32,
    /// Key of every random draw of the run. Default 42.
    pub seed: u64,
    /// From rewards to advantages.
    pub advantage: AdvantageConfig,
    /// The objective.
    pub loss: LossConfig,
    /// What is done about tokens that the step's base policy did not draw. Default "none".
    pub correction: CorrectionConfig,
    /// AdamW's constants.
    pub optimizer: OptimizerConfig,
    /// Held-out evaluation while training.
    pub eval: EvalConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            groups_per_step: 4,
            group_size: 16,
            learning_rate: 5e-6,
            schedule: Decay::Cosine,
            warmup_ratio: 0.1,
            max_grad_norm: 1.0,
            max_staleness: 0,
            keep_stale_kv: false,
            inner_epochs: 1,
            micro_batch_tokens: 4096,
            logical_shards: 1,
            shard_optimizer: false,
            share_prompts: true,
            recompute_activations: false,
            reuse_sampling_mb: 1024,
            recheck_interval: 50,
            seed: 42,
            advantage: AdvantageConfig::default(),
            loss: LossConfig::default(),
            correction: CorrectionConfig::default(),
            optimizer: OptimizerConfig::default(),
            eval: EvalConfig::default(),
            checkpoint: CheckpointConfig::default(),
        }
    }
}

/// From the rewards of a group to the advantage of each sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum AdvantageConfig {
    /// (reward - mean) / (std + eps), arXiv 2402.03300.
    Grpo {
        /// Divide by the group's standard deviation. Default true; with loss "dr_grpo" false.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        std: Option<bool>,
        /// Divide by G - 1 instead of G inside the standard deviation, as TRL does. Default false.
        #[serde(default)]
        bessel: bool,
        /// Added to the standard deviation. Default 1e-4.
        #[serde(default = "advantage_eps")]
        eps: f64,
    },
    /// Reward minus the mean of the group's other rewards, arXiv 2402.14740.
    Rloo {},
}

impl Default for AdvantageConfig {
    fn default() -> Self {
        Self::Grpo { std: None, bessel: false, eps: advantage_eps() }
    }
}

/// The objective.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum LossConfig {
    /// Clipped ratio to the stored log-probs, arXiv 2402.03300.
    Grpo {
        /// The ratio's gradient stops below 1 - clip_low. Default 0.2.
        #[serde(default = "clip")]
        clip_low: f64,
        /// The ratio's gradient stops above 1 + clip_high. Default 0.2.
        #[serde(default = "clip")]
        clip_high: f64,
        /// Weight of the KL divergence from the base model; 0 needs no reference model. Default 0.
        #[serde(default)]
        beta: f64,
        /// Weight of the entropy bonus. Default 0.
        #[serde(default)]
        entropy_coef: f64,
        /// How tokens are weighed: "sequence_mean", "token_mean" or "constant". Default "sequence_mean".
        #[serde(default)]
        aggregation: AggregationConfig,
        /// Sampled tokens of one completion, at most: the divisor of aggregation "constant", which needs it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_completion_length: Option<u32>,
    },
    /// GRPO without its length and difficulty biases: constant divisor, advantages without std, arXiv 2503.20783.
    DrGrpo {
        /// The ratio's gradient stops below 1 - clip_low. Default 0.2.
        #[serde(default = "clip")]
        clip_low: f64,
        /// The ratio's gradient stops above 1 + clip_high. Default 0.2.
        #[serde(default = "clip")]
        clip_high: f64,
        /// Weight of the KL divergence from the base model; 0 needs no reference model. Default 0.
        #[serde(default)]
        beta: f64,
        /// Sampled tokens of one completion, at most: the constant divisor. No default.
        max_completion_length: u32,
    },
    /// Cross-entropy of the sampled tokens; rewards and advantages are not used.
    Sft {},
}

impl Default for LossConfig {
    fn default() -> Self {
        Self::Grpo {
            clip_low: clip(),
            clip_high: clip(),
            beta: 0.0,
            entropy_coef: 0.0,
            aggregation: AggregationConfig::default(),
            max_completion_length: None,
        }
    }
}

/// What is done about tokens that the step's base policy did not draw: it had an older version, a truncated distribution or
/// other numerics. The ratio of a token is exp(log-prob under the base - log-prob of the distribution really drawn from); with
/// a correction the loss clips the ratio to the base policy and every token's loss is multiplied by the bounded ratio.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum CorrectionConfig {
    /// Nothing: the loss clips the ratio to the stored log-probs.
    None {},
    /// Truncated importance sampling: the ratio, kept within bounds (Yao et al. 2025).
    Tis {
        /// Ratios below are raised to it. Default 0.
        #[serde(default)]
        min: f64,
        /// Ratios above are lowered to it. Default 2.
        #[serde(default = "tis_max")]
        max: f64,
    },
    /// Masked importance sampling: the ratio within bounds, 0 outside, arXiv 2510.18855.
    Mis {
        /// Tokens whose ratio is below are left out. Default 0.5.
        #[serde(default = "mis_min")]
        min: f64,
        /// Tokens whose ratio is above are left out. Default 5.
        #[serde(default = "mis_max")]
        max: f64,
    },
}

impl Default for CorrectionConfig {
    fn default() -> Self {
        Self::None {}
    }
}

/// How the tokens of a step are weighed. Every divisor counts the whole step, never a rank or micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AggregationConfig {
    /// Mean of each completion, then over completions.
    #[default]
    SequenceMean,
    /// Mean over all tokens.
    TokenMean,
    /// Sum over tokens / (completions x max_completion_length).
    Constant,
}

/// AdamW's constants, arXiv 1711.05101.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Decay of the first and second moment. Default [0.9, 0.99].
    pub betas: [f64; 2],
    /// Added to the root of the second moment. Default 1e-8.
    pub eps: f64,
    /// Weight decay of matrices, times the learning rate. Default 0.01.
    pub weight_decay: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Held-out evaluation while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Steps between rounds; 0 evaluates before the first and after the last step only. Default 50.
    pub every: u64,
    /// Sampled completions of each held-out prompt. Default 4.
    pub samples: u16,
    /// Held-out prompts of a round; 0 takes all. Default 0.
    pub prompts: u32,
    /// Also decode each prompt greedily. Default true.
    pub greedy: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { every: 50, samples: 4, prompts: 0, greedy: true }
    }
}

/// Checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints, at most; 0 counts none. Default 100. The last step is always saved.
    pub every: u64,
    /// Seconds that the learner may have computed since the last checkpoint before the next one is saved: a learner that is lost
    /// takes these steps again. 0 counts none. Default 20.
    pub replay_s: u64,
    /// Newest checkpoints to keep. Default 3; at least 1.
    pub keep: u32,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 100, replay_s: 20, keep: 3 }
    }
}

fn clip() -> f64 {
    0.2
}

fn tis_max() -> f64 {
    2.0
}

fn mis_min() -> f64 {
    0.5
}

fn mis_max() -> f64 {
    5.0
}

fn advantage_eps() -> f64 {
    crate::advantage::grpo::EPS
}

/// A value of `[training]` that is refused.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("{path} = {value}: {rule}")]
pub struct ConfigError {
    /// Dotted path of the key.
    pub path: String,
    /// What it is.
    pub value: String,
    /// What it must be, and why where that is not plain.
    pub rule: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<TrainingConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(read("{}").unwrap(), TrainingConfig::default());
        assert_eq!(read(r#"{"loss":{"type":"grpo"},"advantage":{"type":"grpo"}}"#).unwrap(), TrainingConfig::default());
    }

    #[test]
    fn keys_of_another_type_are_refused() {
        for (json, word) in [
            (r#"{"advantage":{"type":"rloo","std":true}}"#, "std"),
            (r#"{"loss":{"type":"sft","beta":0.1}}"#, "beta"),
            (r#"{"correction":{"type":"none","max":2}}"#, "max"),
            (r#"{"loss":{"type":"dr_grpo","max_completion_length":8,"aggregation":"constant"}}"#, "aggregation"),
            (r#"{"loss":{"type":"dr_grpo"}}"#, "max_completion_length"),
            (r#"{"loss":{"type":"gpro"}}"#, "gpro"),
            (r#"{"steps":-3}"#, "-3"),
            (r#"{"stpes":3}"#, "stpes"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(word), "{json}: {error}");
        }
    }

    #[test]
    fn comes_back_as_it_was_written() {
        let config = TrainingConfig {
            loss: LossConfig::DrGrpo { clip_low: 0.1, clip_high: 0.3, beta: 0.01, max_completion_length: 64 },
            advantage: AdvantageConfig::Rloo {},
            ..TrainingConfig::default()
        };
        assert_eq!(read(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }
}
