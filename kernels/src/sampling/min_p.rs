//! Min-p (2407.01082, eq. 1): only tokens at least `min_p` times as likely as the most likely one.
//!
//! ```text
//! keep v  where  P(v) >= min_p max P,   that is  e^(z(v) - max z) >= min_p
//! ```
//!
//! The set of transformers' `MinPLogitsWarper` and of vLLM, without their detour over the softmax's sum, which cancels.
use crate::logprob::RowStats;
use crate::math::exp;

/// Sets every other logit to -infinity. `min_p` 0 changes nothing. `stats` give the row's temperature and largest `z`. O(vocab)
pub fn min_p(logits: &mut [f32], stats: &RowStats, min_p: f32) {
    if min_p <= 0.0 {
        return;
    }
    for z in logits {
        if exp(*z / stats.temperature - stats.max) < min_p {
            *z = f32::NEG_INFINITY;
        }
    }
}
