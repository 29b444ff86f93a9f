//! The clipped surrogate that the GRPO family shares ([1707.06347](https://arxiv.org/abs/1707.06347)), per token:
//!
//! r = exp(logp - logp_old)
//! l = -min(r A, clip(r, 1 - low, 1 + high) A) + beta sg(r) k3 - entropy_coef H
//!
//! with k3 = exp(d) - d - 1, d = logp_ref - logp (Schulman's estimate of the KL divergence to the reference, never
//! negative). Its samples come from the old policy, so it is weighted by the detached ratio sg(r), which is exactly 1 in
//! the first inner epoch. L = sum over tokens of weight x l. With a correction ([`super::correction`]) both terms but the
//! entropy, which is no estimate over samples, are multiplied by its detached factor.
use super::{Aggregation, Clip, LossInput, LossOutput};
use crate::exact::exp;
use crate::metrics::Tally;

/// What distinguishes the losses of the family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Surrogate {
    /// Where the ratio's gradient stops.
    pub clip: Clip,
    /// Weight of the KL term; 0 leaves it out.
    pub beta: f64,
    /// Weight of the entropy bonus; 0 leaves it out.
    pub entropy_coef: f64,
    /// How tokens are weighed.
    pub aggregation: Aggregation,
}

/// One token's loss, its derivative by logp, and what happened.
struct Token {
    policy_loss: f64,
    d_policy: f64,
    clipped_low: bool,
    clipped_high: bool,
}

impl Surrogate {
    /// Loss and gradient of a part of a step.
    #[must_use]
    pub fn evaluate(&self, input: &LossInput<'_>) -> LossOutput {
        let n = input.logp.len();
        let mut out = LossOutput {
            loss: 0.0,
            d_logp: vec![0.0; n],
            d_entropy: (self.entropy_coef != 0.0).then(|| vec![0.0; n]),
            metrics: Tally::default(),
        };
        for (range, &advantage) in input.sequences.iter().zip(input.advantages) {
            self.sequence(input, range.clone(), advantage, &mut out);
        }
        out
    }

    fn sequence(&self, input: &LossInput<'_>, range: std::ops::Range<usize>, advantage: f64, out: &mut LossOutput) {
        let tokens = input.mask[range.clone()].iter().filter(|&&m| m).count();
        if tokens == 0 {
            return;
        }
        let weight = self.aggregation.weight(tokens, input.totals);
        let (mut policy_loss, mut kl_loss, mut kl_sum, mut entropy_sum, mut low, mut high) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
        for i in range.filter(|&i| input.mask[i]) {
            let corrected = weight * input.weight.map_or(1.0, |w| w[i]);
            let ratio = exp(input.logp[i] - input.logp_old[i]);
            let token = self.token(ratio, advantage);
            policy_loss += corrected * token.policy_loss;
            out.d_logp[i] = corrected * token.d_policy;
            low += f64::from(u8::from(token.clipped_low));
            high += f64::from(u8::from(token.clipped_high));
            entropy_sum += input.entropy[i];
            if let Some(logp_ref) = input.logp_ref {
                let d = logp_ref[i] - input.logp[i];
                let e = exp(d);
                let k3 = e - d - 1.0;
                kl_sum += k3;
                if self.beta != 0.0 {
                    kl_loss += corrected * self.beta * ratio * k3;
                    out.d_logp[i] += corrected * self.beta * ratio * (1.0 - e);
                }
            }
            if let Some(d_entropy) = &mut out.d_entropy {
                d_entropy[i] = -weight * self.entropy_coef;
            }
        }
        let bonus = if self.entropy_coef == 0.0 { 0.0 } else { weight * self.entropy_coef * entropy_sum };
        out.loss += policy_loss + kl_loss - bonus;
        #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
        let tokens = tokens as f64;
        let m = &mut out.metrics;
        m.sum("policy_loss", policy_loss);
        if input.logp_ref.is_some() {
            m.mean("kl", kl_sum, tokens);
        }
        m.mean("entropy", entropy_sum, tokens);
        m.mean("clip_ratio/low_mean", low, tokens);
        m.min("clip_ratio/low_min", low / tokens);
        m.mean("clip_ratio/high_mean", high, tokens);
        m.max("clip_ratio/high_max", high / tokens);
        m.mean("clip_ratio/region_mean", low + high, tokens);
    }

    fn token(&self, ratio: f64, advantage: f64) -> Token {
        let clipped_low = advantage < 0.0 && ratio < 1.0 - self.clip.low;
        let clipped_high = advantage > 0.0 && ratio > 1.0 + self.clip.high;
        let (policy_loss, d_policy) = if clipped_low {
            (-(1.0 - self.clip.low) * advantage, 0.0)
        } else if clipped_high {
            (-(1.0 + self.clip.high) * advantage, 0.0)
        } else if advantage == 0.0 {
            // An overflown ratio times 0 would be no number.
            (0.0, 0.0)
        } else {
            (-ratio * advantage, -ratio * advantage)
        };
        Token { policy_loss, d_policy, clipped_low, clipped_high }
    }
}
