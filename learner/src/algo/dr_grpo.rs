//! Dr. GRPO ([2503.20783](https://arxiv.org/abs/2503.20783)), GRPO done right:
//!
//! L = -(1/(N L_max)) sum_i sum_t [ min(r A_i, clip(r, 1 - low, 1 + high) A_i) - beta KL ], A_i = R_i - mean(R)
//!
//! L_max is the configured maximum completion length, not the batch's, so that long wrong answers are not favoured by
//! their own length; the advantage goes without the standard deviation (the default of `training.advantage.std` here).
use super::surrogate::Surrogate;
use super::{Aggregation, Clip, Loss, LossInput, LossOutput};

/// The loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrGrpo {
    /// Where the ratio's gradient stops.
    pub clip: Clip,
    /// Weight of the KL divergence from the reference.
    pub beta: f64,
    /// L_max.
    pub max_completion_length: u32,
}

impl Loss for DrGrpo {
    fn name(&self) -> &'static str {
        "dr_grpo"
    }

    fn needs_reference(&self) -> bool {
        self.beta != 0.0
    }

    fn evaluate(&self, input: &LossInput<'_>) -> LossOutput {
        let aggregation = Aggregation::Constant { length: self.max_completion_length };
        Surrogate { clip: self.clip, beta: self.beta, entropy_coef: 0.0, aggregation }.evaluate(input)
    }
}
