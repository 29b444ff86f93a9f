//! GRPO ([2402.03300](https://arxiv.org/abs/2402.03300)):
//!
//! L = -(1/N) sum_i (1/T_i) sum_t [ min(r A_i, clip(r, 1 - low, 1 + high) A_i) - beta KL ]
//!
//! over all N samples of the step and their T_i sampled tokens; `r` from the log-probs stored by the sampler. With
//! `token_mean` the weights are those of DAPO ([2503.14476](https://arxiv.org/abs/2503.14476)), 1 / sum T_i; with
//! `constant` those of Dr. GRPO. Asymmetric clipping (`high` above `low`) is DAPO's clip-higher.
use super::surrogate::Surrogate;
use super::{Aggregation, Clip, Loss, LossInput, LossOutput};

/// The loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grpo {
    /// Where the ratio's gradient stops.
    pub clip: Clip,
    /// Weight of the KL divergence from the reference.
    pub beta: f64,
    /// Weight of the entropy bonus.
    pub entropy_coef: f64,
    /// How tokens are weighed.
    pub aggregation: Aggregation,
}

impl Loss for Grpo {
    fn name(&self) -> &'static str {
        "grpo"
    }

    fn needs_reference(&self) -> bool {
        self.beta != 0.0
    }

    fn evaluate(&self, input: &LossInput<'_>) -> LossOutput {
        let Self { clip, beta, entropy_coef, aggregation } = *self;
        Surrogate { clip, beta, entropy_coef, aggregation }.evaluate(input)
    }
}
