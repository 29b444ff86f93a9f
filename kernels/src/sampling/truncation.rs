//! Which tokens may be drawn at all: top-k, then top-p, then min-p, each on what the one before left, renormalised.
//!
//! The order of transformers' generation. vLLM (V1) has min-p before top-k: with min-p and top-p both on, its nucleus is
//! taken of fewer tokens and may be smaller.
use super::{min_p, top_k, top_p};
use crate::Path;
use crate::logprob;

/// Which tokens may be drawn. [`Truncation::OFF`] changes no bit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truncation {
    /// Only tokens with one of so many largest logits; 0 is off.
    pub top_k: u32,
    /// Only the fewest most likely tokens of this probability, above 0; 1 is off.
    pub top_p: f32,
    /// Only tokens at least so many times as likely as the most likely one, 0 to 1; 0 is off.
    pub min_p: f32,
}

impl Default for Truncation {
    fn default() -> Self {
        Self::OFF
    }
}

impl Truncation {
    /// All tokens.
    pub const OFF: Self = Self { top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_off(&self) -> bool {
        *self == Self::OFF
    }

    /// Sets the logits of tokens that may not be drawn to -infinity. The most likely token always stays. `logits: [vocab]`,
    /// not yet divided by the temperature, finite or -infinity.
    pub fn apply(&self, path: Path, logits: &mut [f32], temperature: f32) {
        top_k(logits, self.top_k as usize);
        if self.top_p >= 1.0 && self.min_p <= 0.0 {
            return;
        }
        // The largest z, which is all that min-p asks for, stays what it is under both of the others.
        let stats = logprob::row(path, logits, temperature);
        top_p(path, logits, &stats, self.top_p);
        min_p(logits, &stats, self.min_p);
    }
}
