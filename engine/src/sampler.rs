//! How one token is drawn from logits, and when a generation stops.
//!
//! A draw is a pure function of (logits, how to draw, key, the sequence's own tokens): regenerating gives the same token, and
//! nothing else in the batch matters. A constraint comes first, then penalties, then the temperature, then top-k, top-p, min-p.
use crate::stream::Sampled;
use crate::{Completion, EngineError, Finish};
use cohort_kernels::Path;
use cohort_kernels::logprob::{self, RowStats};
use cohort_kernels::sampling::{self, Draw, Penalties, Truncation};
use std::fmt;
use std::sync::{Mutex, PoisonError};

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

/// Says which tokens may come next: a grammar of the text. The engine knows no text itself. Its answers must be a function of
/// the tokens it was given, so that a generation is the same however often it is done again.
pub trait Constraint: Send {
    /// Sets the logits of all tokens that may not come next to -infinity; at least one stays. `logits: [vocab]`
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), EngineError>;
    /// Takes the token that was drawn.
    fn push(&mut self, token: u32) -> Result<(), EngineError>;
}

/// How tokens of one generation are drawn and when it ends.
pub struct Decoding {
    /// Logits are divided by this before the softmax. Above 0.
    pub temperature: f32,
    /// Take the most likely token (the lowest id among equals); the temperature then only scales log-probs.
    pub greedy: bool,
    /// Which tokens may come at all, before penalties; greedy decoding has it too.
    pub constraint: Option<Box<dyn Constraint>>,
    /// On tokens of the context and of this generation; greedy decoding has them too.
    pub penalties: Penalties,
    /// Which tokens may be drawn; greedy decoding never leaves them.
    pub truncation: Truncation,
    /// Tokens to sample, at most.
    pub max_new_tokens: u32,
    /// Tokens that end the generation; the sampled one is part of it.
    pub stop_ids: Vec<u32>,
    /// Stop strings, streaming.
    pub watch: Option<Box<dyn StopWatch>>,
    /// Key of the draws.
    pub key: DrawKey,
    /// Tokens that this generation sampled before, perhaps in another process: it goes on after them, and they are part of
    /// its completion.
    pub begun: Vec<Sampled>,
}

impl fmt::Debug for Decoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoding")
            .field("temperature", &self.temperature)
            .field("greedy", &self.greedy)
            .field("constrained", &self.constraint.is_some())
            .field("penalties", &self.penalties)
            .field("truncation", &self.truncation)
            .field("max_new_tokens", &self.max_new_tokens)
            .field("stop_ids", &self.stop_ids)
            .field("watched", &self.watch.is_some())
            .field("key", &self.key)
            .field("begun", &self.begun.len())
            .finish()
    }
}

/// What a draw depends on besides logits.
#[derive(Clone, Copy)]
pub(crate) struct Rule<'a> {
    temperature: f32,
    greedy: bool,
    key: DrawKey,
    penalties: Penalties,
    truncation: Truncation,
    /// All tokens before the drawn one, of which the last `made` are this generation's.
    context: &'a [u32],
    made: usize,
    constraint: Option<&'a Mutex<Box<dyn Constraint>>>,
}

impl<'a> Rule<'a> {
    /// The same under a constraint.
    pub(crate) fn under(self, constraint: Option<&'a Mutex<Box<dyn Constraint>>>) -> Self {
        Self { constraint, ..self }
    }

    /// Whether tokens are drawn from the model's own distribution at the temperature.
    fn is_plain(&self) -> bool {
        self.penalties.is_off() && self.truncation.is_off() && self.constraint.is_none()
    }
}

impl Decoding {
    /// Draws from the model's own distribution at a temperature; nothing ends the generation but its budget.
    #[must_use]
    pub fn plain(temperature: f32, max_new_tokens: u32, key: DrawKey) -> Self {
        Self {
            temperature,
            greedy: false,
            constraint: None,
            penalties: Penalties::OFF,
            truncation: Truncation::OFF,
            max_new_tokens,
            stop_ids: Vec::new(),
            watch: None,
            key,
            begun: Vec::new(),
        }
    }

    /// How the token after `context` is drawn, of which this generation made the last `made`.
    pub(crate) fn rule<'a>(&self, context: &'a [u32], made: usize) -> Rule<'a> {
        let Self { temperature, greedy, key, penalties, truncation, .. } = *self;
        Rule { temperature, greedy, key, penalties, truncation, context, made, constraint: None }
    }

    /// Checks the values.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            let why = format!("temperature {} is not above 0 (greedy decoding has its own switch)", self.temperature);
            return Err(EngineError::Input(why));
        }
        check(&self.penalties, &self.truncation).map_err(|e| EngineError::Input(e.to_string()))
    }

    /// Takes tokens that were sampled before as if they had been drawn now; with the end, where they reach it.
    ///
    /// Errors: [`EngineError::Input`] where there are tokens after the end; those of the constraint.
    pub(crate) fn go_on_after(&mut self, begun: &[Sampled]) -> Result<(Completion, Option<Finish>), EngineError> {
        let (mut made, mut end) = (Completion::empty(), None);
        for (index, sampled) in begun.iter().enumerate() {
            if end.is_some() {
                let all = begun.len();
                return Err(EngineError::Input(format!(
                    "{all} tokens were sampled before, but token {index} ends the generation"
                )));
            }
            if let Some(constraint) = &mut self.constraint {
                constraint.push(sampled.token)?;
            }
            made.push(sampled);
            if self.stops_at(sampled.token) {
                end = Some(Finish::Stop);
            } else if made.tokens.len() >= self.max_new_tokens as usize {
                end = Some(Finish::Length);
            }
        }
        Ok((made, end))
    }

    /// Whether this sampled token ends the generation.
    pub(crate) fn stops_at(&mut self, token: u32) -> bool {
        let watched = self.watch.as_mut().is_some_and(|watch| watch.push(token));
        watched || self.stop_ids.contains(&token)
    }
}

/// A penalty or truncation that means nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} = {value}: {rule}")]
pub struct BadSampling {
    /// Which value, as configuration and command line name it.
    pub field: &'static str,
    /// What it is.
    pub value: f32,
    /// What it must be.
    pub rule: &'static str,
}

/// Checks values that come from outside.
pub fn check(penalties: &Penalties, truncation: &Truncation) -> Result<(), BadSampling> {
    let Penalties { repetition, presence, frequency } = *penalties;
    let Truncation { top_k: _, top_p, min_p } = *truncation;
    let wrong = |field, value, rule| Err(BadSampling { field, value, rule });
    if !(repetition > 0.0 && repetition.is_finite()) {
        return wrong("repetition_penalty", repetition, "must be above 0; 1 is off");
    }
    if !presence.is_finite() {
        return wrong("presence_penalty", presence, "must be a number; 0 is off");
    }
    if !frequency.is_finite() {
        return wrong("frequency_penalty", frequency, "must be a number; 0 is off");
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return wrong("top_p", top_p, "must be above 0 and at most 1; 1 is off");
    }
    if !(0.0..=1.0).contains(&min_p) {
        return wrong("min_p", min_p, "must be 0 to 1; 0 is off");
    }
    Ok(())
}

/// A drawn token with its log-probs, natural log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Drawn {
    /// The token.
    pub(crate) token: u32,
    /// log-softmax(logits / temperature) over the whole vocabulary.
    pub(crate) logp: f32,
    /// Under the distribution really drawn from: equal to `logp` where nothing changes that, 0 when greedy.
    pub(crate) logp_sampled: f32,
    /// Of all logits.
    pub(crate) stats: RowStats,
}

/// Draws the token at `position` of a context from the logits before it. `logits: [vocab]`
///
/// Errors: [`EngineError::NonFinite`] when the logits make no distribution; those of the constraint.
pub(crate) fn sample(path: Path, logits: &[f32], rule: &Rule<'_>, position: u32) -> Result<Drawn, EngineError> {
    let stats = finite(logprob::row(path, logits, rule.temperature), "logits", position)?;
    let drawn = |token: u32, logp_sampled| Drawn { token, logp: stats.logp(logits[token as usize]), logp_sampled, stats };
    if rule.is_plain() {
        let (token, logp_sampled) = choose(path, logits, &stats, rule, position);
        return Ok(drawn(token, logp_sampled));
    }
    let mut left = logits.to_vec();
    if let Some(constraint) = rule.constraint {
        // A sequence is drawn for once in a step: nobody else holds it.
        constraint.lock().unwrap_or_else(PoisonError::into_inner).mask(&mut left)?;
    }
    rule.penalties.apply(&mut left, rule.context, rule.made);
    if !rule.greedy {
        rule.truncation.apply(path, &mut left, rule.temperature);
    }
    let stats = finite(logprob::row(path, &left, rule.temperature), "logits that are left", position)?;
    let (token, logp_sampled) = choose(path, &left, &stats, rule, position);
    Ok(drawn(token, logp_sampled))
}

/// The token, and its log-prob under the distribution of `stats`, or under that of a greedy choice.
fn choose(path: Path, logits: &[f32], stats: &RowStats, rule: &Rule<'_>, position: u32) -> (u32, f32) {
    if rule.greedy {
        return (sampling::argmax(logits), 0.0);
    }
    let DrawKey { seed, group, sample } = rule.key;
    let u = sampling::uniform(seed, Draw { group, sample, position, purpose: PURPOSE });
    let token = sampling::categorical(path, logits, stats, u);
    (token, stats.logp(logits[token as usize]))
}

fn finite(stats: RowStats, what: &str, position: u32) -> Result<RowStats, EngineError> {
    if stats.log_sum.is_finite() && stats.max.is_finite() {
        return Ok(stats);
    }
    Err(EngineError::NonFinite(format!("the {what} at position {position} are not finite")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Vec<f32> {
        (0..200u32).map(|i| ((i * 37) % 101) as f32 / 15.0).collect()
    }

    #[test]
    fn both_log_probs_are_of_their_own_distribution() {
        let (path, logits) = (Path::detect(), logits());
        let key = DrawKey { seed: 1, group: 2, sample: 3 };
        let whole = logprob::row(path, &logits, 0.8);
        let plain = Decoding::plain(0.8, 9, key);
        let narrow = Decoding { truncation: Truncation { top_k: 10, ..Truncation::OFF }, ..Decoding::plain(0.8, 9, key) };
        let mut left = logits.clone();
        narrow.truncation.apply(path, &mut left, 0.8);
        let ten = logprob::row(path, &left, 0.8);
        for position in 0..100 {
            let free = sample(path, &logits, &plain.rule(&[5], 0), position).unwrap();
            assert_eq!(free.logp_sampled.to_bits(), free.logp.to_bits());
            let drawn = sample(path, &logits, &narrow.rule(&[5], 0), position).unwrap();
            let logit = logits[drawn.token as usize];
            assert_eq!(drawn.logp.to_bits(), whole.logp(logit).to_bits());
            assert_eq!(drawn.logp_sampled.to_bits(), ten.logp(logit).to_bits());
            assert!(drawn.logp_sampled > drawn.logp);
        }
    }

    #[test]
    fn a_greedy_choice_is_penalised_and_certain() {
        let logits = [1.0, 3.0, 2.0];
        let decoding = Decoding {
            greedy: true,
            penalties: Penalties { presence: 1.5, ..Penalties::OFF },
            ..Decoding::plain(1.0, 9, DrawKey::default())
        };
        let at = |context: &[u32], made| sample(Path::detect(), &logits, &decoding.rule(context, made), 7).unwrap();
        assert_eq!((at(&[1], 0).token, at(&[1], 1).token), (1, 2), "a prompt's tokens have no presence");
        assert_eq!(at(&[1], 1).logp_sampled, 0.0);
        assert_eq!(at(&[1], 1).logp, logprob::row(Path::detect(), &logits, 1.0).logp(2.0));
    }

    #[test]
    fn values_that_mean_nothing_are_named() {
        let bad = |penalties, truncation| check(&penalties, &truncation).unwrap_err().field;
        let (p, t) = (Penalties::OFF, Truncation::OFF);
        assert_eq!(check(&p, &t), Ok(()));
        assert_eq!(bad(Penalties { repetition: 0.0, ..p }, t), "repetition_penalty");
        assert_eq!(bad(Penalties { presence: f32::NAN, ..p }, t), "presence_penalty");
        assert_eq!(bad(Penalties { frequency: f32::INFINITY, ..p }, t), "frequency_penalty");
        assert_eq!(bad(p, Truncation { top_p: 0.0, ..t }), "top_p");
        assert_eq!(bad(p, Truncation { min_p: 1.5, ..t }), "min_p");
    }
}
