//! What a worker has of a group before it is complete, so that another can go on from there.
//!
//! The policy's words are all that is needed: prompt, tools and environment follow from them again, token for token.
use crate::{PolicyVersion, SampleIx, VersionSpan, codec::Column};
use bincode::{Decode, Encode};
use std::fmt;

/// Why the policy's turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum TurnEnd {
    /// It ended it.
    Stop,
    /// Its token budget was spent.
    Length,
    /// The context was full.
    Context,
}

/// Tokens `start..` of one turn of the policy in one sample. All columns have one entry a token.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct TurnPart {
    /// Which sample of the group.
    pub sample: SampleIx,
    /// Which of the sample's turns of the policy, from 0.
    pub turn: u32,
    /// The first of these tokens, counted in the turn.
    pub start: u32,
    /// Sampled ids. `[N]`
    pub token_ids: Column<u32>,
    /// As [`Trajectory::logp`](crate::Trajectory::logp). `[N]`
    pub logp: Column<f32>,
    /// As [`Trajectory::logp_sampled`](crate::Trajectory::logp_sampled). `[N]`
    pub logp_sampled: Column<f32>,
    /// Policy versions of these tokens, in order; counted from the part's first token.
    pub spans: Vec<VersionSpan>,
    /// Set where the turn is over with these tokens.
    pub ended: Option<TurnEnd>,
}

/// A part that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPart {
    /// Which sample.
    pub sample: SampleIx,
    /// Which of its turns.
    pub turn: u32,
    /// Which rule it breaks.
    pub why: String,
}

impl fmt::Display for InvalidPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part of sample {}, turn {}: {}", self.sample, self.turn, self.why)
    }
}

impl std::error::Error for InvalidPart {}

impl TurnPart {
    /// A turn's part without tokens yet.
    #[must_use]
    pub fn empty(sample: SampleIx, turn: u32, start: u32) -> Self {
        let (token_ids, logp, logp_sampled) = (Column(Vec::new()), Column(Vec::new()), Column(Vec::new()));
        Self { sample, turn, start, token_ids, logp, logp_sampled, spans: Vec::new(), ended: None }
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.token_ids.0.len()
    }

    /// Whether it has no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.token_ids.0.is_empty()
    }

    /// Adds tokens of one policy version.
    pub fn push(&mut self, token: u32, (logp, logp_sampled): (f32, f32), (version, exact): (PolicyVersion, bool)) {
        let start = self.token_ids.0.len() as u32;
        self.token_ids.0.push(token);
        self.logp.0.push(logp);
        self.logp_sampled.0.push(logp_sampled);
        match self.spans.last_mut() {
            Some(span) if (span.version, span.exact) == (version, exact) => span.len += 1,
            _ => self.spans.push(VersionSpan { start, len: 1, version, exact }),
        }
    }

    /// Keeps the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        self.token_ids.0.truncate(len);
        self.logp.0.truncate(len);
        self.logp_sampled.0.truncate(len);
        let len = len as u32;
        self.spans.retain(|span| span.start < len);
        if let Some(last) = self.spans.last_mut() {
            last.len = last.len.min(len - last.start);
        }
        self.ended = None;
    }

    /// Adds the tokens of the part that follows this one, of the same turn.
    pub fn append(&mut self, next: &Self) {
        for (i, (version, exact)) in next.versions().enumerate() {
            self.push(next.token_ids.0[i], (next.logp.0[i], next.logp_sampled.0[i]), (version, exact));
        }
        self.ended = next.ended;
    }

    /// Takes the promise of its log-probs back.
    pub fn mark_inexact(&mut self) {
        self.spans.iter_mut().for_each(|span| span.exact = false);
    }

    /// The policy version of each token, and whether its log-probs are exact.
    pub fn versions(&self) -> impl Iterator<Item = (PolicyVersion, bool)> + '_ {
        self.spans.iter().flat_map(|span| std::iter::repeat_n((span.version, span.exact), span.len as usize))
    }

    /// Checks the columns against each other: lengths, finite log-probs at most 0, spans that cover the tokens in order.
    pub fn validate(&self) -> Result<(), InvalidPart> {
        let fail = |why: String| Err(InvalidPart { sample: self.sample, turn: self.turn, why });
        let tokens = self.len();
        for (name, column) in [("logp", &self.logp), ("logp_sampled", &self.logp_sampled)] {
            if column.0.len() != tokens {
                return fail(format!("{name} has {} entries for {tokens} tokens", column.0.len()));
            }
            if let Some((i, value)) = column.0.iter().enumerate().find(|(_, value)| !value.is_finite() || **value > 0.0) {
                return fail(format!("{name}[{i}] = {value}"));
            }
        }
        let mut at = 0u64;
        for span in &self.spans {
            if u64::from(span.start) != at || span.len == 0 {
                return fail(format!("a span of {} tokens begins at {}, the one before ended at {at}", span.len, span.start));
            }
            at += u64::from(span.len);
        }
        if at != tokens as u64 || u64::from(self.start) + at > crate::limits::MAX_TOKENS as u64 {
            return fail(format!("its spans have {at} tokens from {} on, its columns {tokens}", self.start));
        }
        if self.ended.is_some() && self.start == 0 && tokens == 0 {
            return fail("a turn without a token is over".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(versions: &[u64]) -> TurnPart {
        let mut part = TurnPart::empty(SampleIx(1), 2, 0);
        for (i, version) in versions.iter().enumerate() {
            part.push(i as u32, (-0.5, -0.25), (PolicyVersion(*version), true));
        }
        part
    }

    #[test]
    fn cut_anywhere_and_put_together_it_is_the_same() {
        let whole = TurnPart { ended: Some(TurnEnd::Stop), ..part(&[3, 3, 4, 4, 4, 7]) };
        assert_eq!(whole.spans.len(), 3);
        for cut in 0..=whole.len() {
            let mut first = whole.clone();
            first.truncate(cut);
            assert!(first.validate().is_ok() && (first.ended.is_none() || cut == whole.len()));
            let mut rest = TurnPart::empty(whole.sample, whole.turn, cut as u32);
            for (i, version) in whole.versions().enumerate().skip(cut) {
                rest.push(whole.token_ids.0[i], (whole.logp.0[i], whole.logp_sampled.0[i]), version);
            }
            rest.ended = whole.ended;
            first.append(&rest);
            assert_eq!(first, whole);
        }
    }

    #[test]
    fn contradictions_are_named() {
        let broken: [fn(&mut TurnPart); 6] = [
            |p| p.logp.0.truncate(1),
            |p| p.logp.0[1] = 0.5,
            |p| p.logp_sampled.0[0] = f32::NAN,
            |p| p.spans[0].len = 1,
            |p| p.spans[1].start = 7,
            |p| p.start = u32::MAX,
        ];
        for (i, break_it) in broken.iter().enumerate() {
            let mut part = part(&[3, 3, 4]);
            assert_eq!(part.validate(), Ok(()));
            break_it(&mut part);
            assert!(part.validate().is_err(), "{i}");
        }
        assert!(TurnPart { ended: Some(TurnEnd::Length), ..TurnPart::empty(SampleIx(0), 0, 0) }.validate().is_err());
    }
}
