//! Min-p (2407.01082, eq. 1): only tokens at least `min_p` times as likely as the most likely one.
//!
//! ```text
//! keep v  where  P(v) >= min_p max P,   that is  z(v) - max z >= ln min_p
//! ```
//!
//! The set of transformers' `MinPLogitsWarper` and of vLLM, without their detour over the softmax, whose sum cancels.
use crate::logprob::RowStats;
use crate::math::ln;

/// Sets every other logit to -infinity. `min_p` 0 changes nothing. `stats` give the row's temperature and largest `z`. O(vocab)
pub fn min_p(logits: &mut [f32], stats: &RowStats, min_p: f32) {
    if min_p <= 0.0 {
        return;
    }
    let least = ln(f64::from(min_p)) as f32;
    for z in logits {
        *z = if *z / stats.temperature - stats.max < least { f32::NEG_INFINITY } else { *z };
    }
}
