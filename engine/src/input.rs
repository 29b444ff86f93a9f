//! What a call may be given. Every engine says the same of bad input, before it computes anything (B3).
use crate::{EngineError, Extend, KvId, PackedBatch, PackedSequence};
use cohort_model::DecoderSpec;
use cohort_model::family::Positions;
use std::fmt::Display;

/// Checks an architecture's numbers against each other.
pub(crate) fn spec(spec: &DecoderSpec) -> Result<(), EngineError> {
    let counts =
        [spec.hidden, spec.layers, spec.heads, spec.kv_heads, spec.head_dim, spec.intermediate, spec.vocab, spec.max_context];
    let fits = counts.iter().all(|n| *n > 0)
        && spec.heads.is_multiple_of(spec.kv_heads)
        && (spec.family.traits().positions == Positions::Learned || spec.head_dim.is_multiple_of(2))
        && spec.rope_theta.is_finite()
        && spec.rope_theta > 0.0
        && spec.norm_eps >= 0.0;
    if fits {
        return Ok(());
    }
    Err(EngineError::Input(format!(
        "no decoder has these numbers: {spec:?}; sizes must be positive, head_dim even where it turns, kv_heads a divisor of heads"
    )))
}

/// Checks an `extend`. `held`: tokens that a memory holds; `None` where it is not open.
pub(crate) fn extend(
    spec: &DecoderSpec,
    work: &[Extend<'_>],
    logits: usize,
    held: impl Fn(KvId) -> Option<usize>,
) -> Result<(), EngineError> {
    let vocab = spec.vocab;
    if logits != work.len() * vocab {
        return Err(EngineError::Input(format!("room for {logits} logits where {} rows of {vocab} are due", work.len())));
    }
    for (index, item) in work.iter().enumerate() {
        let what = format_args!("item {index}");
        if item.tokens.is_empty() {
            return Err(EngineError::Input(format!("{what}: no tokens to append")));
        }
        let Some(start) = held(item.kv) else {
            return Err(EngineError::Input(format!("{what}: key/value memory {} is not open", item.kv.0)));
        };
        if work[..index].iter().any(|other| other.kv == item.kv) {
            return Err(EngineError::Input(format!("{what}: key/value memory {} occurs twice in one call", item.kv.0)));
        }
        tokens(spec, item.tokens, start, &what)?;
    }
    Ok(())
}

/// Checks a training batch.
pub(crate) fn batch(spec: &DecoderSpec, batch: &PackedBatch) -> Result<(), EngineError> {
    let mut first: Option<&[u32]> = None;
    for (index, sequence) in batch.sequences.iter().enumerate() {
        let what = format_args!("sequence {index}");
        let PackedSequence { tokens: own, targets, temperature, shared } = sequence;
        if own.is_empty() {
            return Err(EngineError::Input(format!("{what} is empty")));
        }
        tokens(spec, own, 0, &what)?;
        let inside = targets.iter().all(|t| *t >= 1 && (*t as usize) < own.len());
        if !inside || targets.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(EngineError::Input(format!("{what}: targets must ascend from 1 to at most {}", own.len() - 1)));
        }
        if !(temperature.is_finite() && *temperature > 0.0) {
            return Err(EngineError::Input(format!("{what}: temperature {temperature} must be above 0")));
        }
        let shared = *shared as usize;
        if shared == 0 {
            first = Some(own);
            continue;
        }
        let most = targets.first().map_or(own.len() - 1, |t| *t as usize);
        let same = shared <= most && first.and_then(|first| first.get(..shared)).is_some_and(|first| *first == own[..shared]);
        if !same {
            return Err(EngineError::Input(format!(
                "{what} shares {shared} tokens: they must be those of its family's first sequence, and none of them a target"
            )));
        }
    }
    Ok(())
}

fn tokens(spec: &DecoderSpec, tokens: &[u32], start: usize, what: &dyn Display) -> Result<(), EngineError> {
    let (vocab, most) = (spec.vocab, spec.max_context);
    if let Some(at) = tokens.iter().position(|token| *token as usize >= vocab) {
        let (token, at) = (tokens[at], start + at);
        return Err(EngineError::Input(format!("{what}: token {token} at {at} is not below the vocabulary of {vocab}")));
    }
    if start + tokens.len() > most {
        let len = start + tokens.len();
        return Err(EngineError::Capacity(format!(
            "{what}: {len} tokens do not fit the context of {most}; shorten the prompt or the completion"
        )));
    }
    Ok(())
}
