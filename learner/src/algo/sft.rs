//! Supervised fine-tuning: the cross-entropy of the masked tokens, in nats per token of the step.
//!
//! L = -(1 / sum_i T_i) sum_i sum_t logp
//!
//! Advantages and stored log-probs are not read.
use super::{Aggregation, Loss, LossInput, LossOutput};
use crate::metrics::Tally;

/// The loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sft;

impl Loss for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn needs_reference(&self) -> bool {
        false
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
    fn evaluate(&self, input: &LossInput<'_>) -> LossOutput {
        let weight = Aggregation::TokenMean.weight(0, input.totals);
        let mut out = LossOutput { loss: 0.0, d_logp: vec![0.0; input.logp.len()], d_entropy: None, metrics: Tally::default() };
        let (mut entropy, mut tokens) = (0.0, 0usize);
        for i in input.sequences.iter().cloned().flatten().filter(|&i| input.mask[i]) {
            out.loss -= weight * input.logp[i];
            out.d_logp[i] = -weight;
            entropy += input.entropy[i];
            tokens += 1;
        }
        out.metrics.sum("policy_loss", out.loss);
        out.metrics.mean("entropy", entropy, tokens as f64);
        out
    }
}
