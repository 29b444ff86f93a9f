//! Penalties on tokens that are there already, applied to logits before the temperature, in vLLM's order.
//!
//! With `n(v)` the number of times that token `v` was made by this generation:
//!
//! ```text
//! repetition (1909.05858, eq. 2):  z(v) <- z(v) / r  where z(v) >= 0,  z(v) r  where z(v) < 0,   v anywhere in the context
//! frequency:                       z(v) <- z(v) - f n(v)
//! presence:                        z(v) <- z(v) - p          where n(v) > 0
//! ```
//!
//! The repetition penalty is the one of transformers (`RepetitionPenaltyLogitsProcessor`) and vLLM: prompt and completion
//! count, each token once. Presence and frequency are those of the OpenAI interface as vLLM has them: only the completion counts.

/// How much a token that is there already loses. [`Penalties::OFF`] changes no bit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Divides positive and multiplies negative logits of tokens of the context. Above 0; 1 is off.
    pub repetition: f32,
    /// Taken off the logit of a token once for being in the completion. 0 is off.
    pub presence: f32,
    /// Taken off the logit of a token for each time it is in the completion. 0 is off.
    pub frequency: f32,
}

impl Default for Penalties {
    fn default() -> Self {
        Self::OFF
    }
}

impl Penalties {
    /// No penalty.
    pub const OFF: Self = Self { repetition: 1.0, presence: 0.0, frequency: 0.0 };

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_off(&self) -> bool {
        *self == Self::OFF
    }

    /// Changes the logits of one position. `context` are all tokens before it, of which the last `made` are the completion's
    /// own. `logits: [vocab]`; tokens past it are ignored. O(T log T) in the context's length.
    pub fn apply(&self, logits: &mut [f32], context: &[u32], made: usize) {
        if self.repetition != 1.0 {
            for (token, _) in counts(context) {
                if let Some(z) = logits.get_mut(token as usize) {
                    *z = if *z < 0.0 { *z * self.repetition } else { *z / self.repetition };
                }
            }
        }
        if self.presence == 0.0 && self.frequency == 0.0 {
            return;
        }
        for (token, n) in counts(&context[context.len().saturating_sub(made)..]) {
            if let Some(z) = logits.get_mut(token as usize) {
                *z -= self.frequency * n as f32;
                *z -= self.presence;
            }
        }
    }
}

/// Each token once, with how often it occurs.
fn counts(tokens: &[u32]) -> Vec<(u32, u32)> {
    let mut sorted = tokens.to_vec();
    sorted.sort_unstable();
    sorted.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect()
}
