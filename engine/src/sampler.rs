//! How one token is drawn from logits, and when a generation stops.
//!
//! A draw is a pure function of (logits, temperature, key, position): regenerating gives the same token, and nothing else
//! in the batch matters.
use crate::EngineError;
use cohort_kernels::sampling::{self, Draw};
use cohort_kernels::{Path, logprob};
use std::fmt;

/// Key of every draw of one sequence; a draw adds the token's position in the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DrawKey {
    /// The run's seed, mixed with what the sequence is for.
    pub seed: u64,
    /// Group.
    pub group: u64,
    /// Sample in the group.
    pub sample: u16,
}

/// Keeps the sampler's draws apart from other draws at the same position.
const PURPOSE: u16 = 1;

/// Watches the text that sampled tokens make, for stop strings and streaming. The engine knows no text itself.
pub trait StopWatch: Send {
    /// Takes the next sampled token; `true` ends the generation with it.
    fn push(&mut self, token: u32) -> bool;
}

impl<F: FnMut(u32) -> bool + Send> StopWatch for F {
    fn push(&mut self, token: u32) -> bool {
        self(token)
    }
}

/// How tokens of one generation are drawn and when it ends.
pub struct Decoding {
    /// Logits are divided by this before the softmax. Above 0.
    pub temperature: f32,
    /// Take the most likely token (the lowest id among equals); the temperature then only scales log-probs.
    pub greedy: bool,
    /// Tokens to sample, at most.
    pub max_new_tokens: u32,
    /// Tokens that end the generation; the sampled one is part of it.
    pub stop_ids: Vec<u32>,
    /// Stop strings, streaming.
    pub watch: Option<Box<dyn StopWatch>>,
    /// Key of the draws.
    pub key: DrawKey,
}

impl fmt::Debug for Decoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoding")
            .field("temperature", &self.temperature)
            .field("greedy", &self.greedy)
            .field("max_new_tokens", &self.max_new_tokens)
            .field("stop_ids", &self.stop_ids)
            .field("watched", &self.watch.is_some())
            .field("key", &self.key)
            .finish()
    }
}

/// What a draw depends on besides logits and position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rule {
    temperature: f32,
    greedy: bool,
    key: DrawKey,
}

impl Decoding {
    /// How its tokens are drawn.
    pub(crate) fn rule(&self) -> Rule {
        Rule { temperature: self.temperature, greedy: self.greedy, key: self.key }
    }

    /// Checks the values.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        if self.temperature > 0.0 && self.temperature.is_finite() {
            return Ok(());
        }
        Err(EngineError::Input(format!("temperature {} is not above 0 (greedy decoding has its own switch)", self.temperature)))
    }

    /// Whether this sampled token ends the generation.
    pub(crate) fn stops_at(&mut self, token: u32) -> bool {
        let watched = self.watch.as_mut().is_some_and(|watch| watch.push(token));
        watched || self.stop_ids.contains(&token)
    }
}

/// A drawn token with its log-probs, natural log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Drawn {
    /// The token.
    pub(crate) token: u32,
    /// log-softmax(logits / temperature) over the whole vocabulary.
    pub(crate) logp: f32,
    /// Under the distribution really drawn from: equal to `logp` when sampling, 0 when greedy.
    pub(crate) logp_sampled: f32,
}

/// Draws the token at `position` of a context from the logits before it. `logits: [vocab]`
///
/// Errors: [`EngineError::NonFinite`] when the logits make no distribution.
pub(crate) fn sample(path: Path, logits: &[f32], rule: Rule, position: u32) -> Result<Drawn, EngineError> {
    let stats = logprob::row(path, logits, rule.temperature);
    if !stats.log_sum.is_finite() || !stats.max.is_finite() {
        return Err(EngineError::NonFinite(format!("the logits at position {position} are not finite")));
    }
    let token = if rule.greedy {
        sampling::argmax(logits)
    } else {
        let DrawKey { seed, group, sample } = rule.key;
        let u = sampling::uniform(seed, Draw { group, sample, position, purpose: PURPOSE });
        sampling::categorical(path, logits, &stats, u)
    };
    let logp = stats.logp(logits[token as usize]);
    Ok(Drawn { token, logp, logp_sampled: if rule.greedy { 0.0 } else { logp } })
}
