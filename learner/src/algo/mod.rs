//! Objectives: from log-probs and advantages to a loss and its gradient. One pure file each; chosen by name
//! (`training.loss.type`).
//!
//! Invariants
//! - **A1** a loss is a sum over sequences: its value and gradients over micro-batches add up to those over the step,
//!   because every divisor is in [`Denominators`], counted over the whole step before it is split.
//! - **A2** entries outside the mask have gradient 0, whatever stands in them.
//! - **A3** computed in f64 with the operations of [`crate::exact`] only.
pub mod correction;
pub mod dr_grpo;
pub mod grpo;
pub mod sft;
pub mod surrogate;

use crate::config::{AggregationConfig, LossConfig};
use crate::metrics::Tally;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// What the divisors of a loss count: all samples of a step, over every rank and micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denominators {
    /// Samples, those without a sampled token included.
    pub sequences: u64,
    /// Sampled (masked) tokens.
    pub tokens: u64,
}

/// What a loss reads. Columns have one entry a target; sequences lie one after the other. `[N]`, `S` sequences
#[derive(Debug, Clone, Copy)]
pub struct LossInput<'a> {
    /// log-prob under the current policy. `[N]`
    pub logp: &'a [f64],
    /// log-prob under the policy whose ratio is clipped: the one that sampled, as stored, or with a correction the proximal
    /// one. `[N]`
    pub logp_old: &'a [f64],
    /// log-prob under the frozen reference, where the loss needs one. `[N]`
    pub logp_ref: Option<&'a [f64]>,
    /// Detached factor of every token's policy and KL term; `None` is 1 everywhere ([`correction`]). `[N]`
    pub weight: Option<&'a [f64]>,
    /// Entropy of the current policy at the target, nats. `[N]`
    pub entropy: &'a [f64],
    /// Whether the policy sampled the target. `[N]`
    pub mask: &'a [bool],
    /// Targets of each sequence. `[S]`
    pub sequences: &'a [Range<usize>],
    /// Advantage of each sequence. `[S]`
    pub advantages: &'a [f64],
    /// Counts of the whole step.
    pub totals: Denominators,
}

/// What a loss says.
#[derive(Debug, Clone, PartialEq)]
pub struct LossOutput {
    /// This part's share of the step's loss, to be minimised.
    pub loss: f64,
    /// dL/dlogp. `[N]`
    pub d_logp: Vec<f64>,
    /// dL/dentropy, where the loss has an entropy term. `[N]`
    pub d_entropy: Option<Vec<f64>>,
    /// This part's share of the metrics.
    pub metrics: Tally,
}

/// An objective.
pub trait Loss: Debug + Send + Sync {
    /// The name in the registry.
    fn name(&self) -> &'static str;
    /// Whether [`LossInput::logp_ref`] must be there.
    fn needs_reference(&self) -> bool;
    /// The loss and its gradient. Not finite where its inputs overflow it: the caller checks.
    fn evaluate(&self, input: &LossInput<'_>) -> LossOutput;
}

/// Names that `training.loss.type` takes.
pub const NAMES: &[&str] = &["grpo", "dr_grpo", "sft"];

/// The loss that a config names. Ranges are checked by [`crate::training::Training`].
#[must_use]
pub fn build(config: &LossConfig) -> Arc<dyn Loss> {
    match *config {
        LossConfig::Grpo { clip_low, clip_high, beta, entropy_coef, aggregation, max_completion_length } => {
            let aggregation = match aggregation {
                AggregationConfig::SequenceMean => Aggregation::SequenceMean,
                AggregationConfig::TokenMean => Aggregation::TokenMean,
                AggregationConfig::Constant => Aggregation::Constant { length: max_completion_length.unwrap_or(1) },
            };
            Arc::new(grpo::Grpo { clip: Clip { low: clip_low, high: clip_high }, beta, entropy_coef, aggregation })
        }
        LossConfig::DrGrpo { clip_low, clip_high, beta, max_completion_length } => {
            Arc::new(dr_grpo::DrGrpo { clip: Clip { low: clip_low, high: clip_high }, beta, max_completion_length })
        }
        LossConfig::Sft {} => Arc::new(sft::Sft),
    }
}

/// Where the gradient of a ratio stops.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// Below 1 - low, where the advantage is negative.
    pub low: f64,
    /// Above 1 + high, where the advantage is positive.
    pub high: f64,
}

/// How the tokens of a step are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    /// 1 / (samples x tokens of the sample).
    SequenceMean,
    /// 1 / tokens of the step.
    TokenMean,
    /// 1 / (samples x length).
    Constant {
        /// The configured maximum completion length, never the batch's.
        length: u32,
    },
}

impl Aggregation {
    /// Weight of each token of a sequence that has `tokens` of them.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
    pub fn weight(self, tokens: usize, totals: Denominators) -> f64 {
        1.0 / match self {
            Self::SequenceMean => totals.sequences as f64 * tokens as f64,
            Self::TokenMean => totals.tokens as f64,
            Self::Constant { length } => totals.sequences as f64 * f64::from(length),
        }
    }
}
