//! What a rollout worker made, exactly as it was sampled.
use crate::{AttemptId, Epoch, GroupId, LeasePurpose, PolicyVersion, SampleIx, Turn, codec::Column};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The environment said so, or the policy ended a single turn.
    Stop,
    /// A turn ran into its token budget.
    Length,
    /// The context was full.
    Context,
    /// The episode's turn budget was spent.
    MaxTurns,
}

/// Tokens `start..start + len` were sampled under `version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct VersionSpan {
    /// First token.
    pub start: u32,
    /// Number of tokens.
    pub len: u32,
    /// Policy.
    pub version: PolicyVersion,
    /// Whether the stored log-probs are that policy's own, to the bit. Not where keys and values of an older version were kept
    /// over a swap of weights, or the sampler computes with other numerics than the learner.
    pub exact: bool,
}

/// One sample of a group. All columns have one entry a token; entries outside the mask are 0.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct Trajectory {
    /// Its group.
    pub group: GroupId,
    /// Its place in the group.
    pub sample: SampleIx,
    /// Every token of the context: prompt, sampled, tool output. Exact ids, never re-tokenised. `[T]`
    pub token_ids: Column<u32>,
    /// 1 where the policy sampled the token, else 0. `[T]`
    pub mask: Vec<u8>,
    /// log-softmax(logits / temperature) of the token over the whole vocabulary, natural log; 0 where mask is 0. `[T]`
    pub logp: Column<f32>,
    /// The same after penalties, truncation and grammar: the distribution really drawn from. `[T]`
    pub logp_sampled: Column<f32>,
    /// Policy version of every sampled span, in order.
    pub spans: Vec<VersionSpan>,
    /// Temperature of the log-probs.
    pub temperature: f32,
    /// The dialogue for graders and people.
    pub turns: Vec<Turn>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Microseconds spent generating (a report; never an input of training).
    pub generate_us: u64,
    /// What the environment says about the episode, a JSON object, handed to the reward.
    pub context_json: String,
}

/// A trajectory that contradicts itself: refused before it is journalled.
#[derive(Debug, Error, Clone, PartialEq)]
#[error("trajectory {group}/{sample}: {why}")]
pub struct InvalidTrajectory {
    /// Group.
    pub group: GroupId,
    /// Sample.
    pub sample: SampleIx,
    /// Which rule it breaks.
    pub why: String,
}

impl Trajectory {
    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.token_ids.len()
    }

    /// Whether it has no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.token_ids.is_empty()
    }

    /// Tokens that the policy sampled.
    #[must_use]
    pub fn completion_len(&self) -> usize {
        self.mask.iter().filter(|&&m| m == 1).count()
    }

    /// Oldest policy version of a sampled token; `None` where nothing was sampled.
    #[must_use]
    pub fn oldest_version(&self) -> Option<PolicyVersion> {
        self.spans.iter().map(|s| s.version).min()
    }

    /// Takes the promise of its log-probs back.
    pub fn mark_inexact(&mut self) {
        self.spans.iter_mut().for_each(|span| span.exact = false);
    }

    /// Whether a sampled token's log-probs are no version's own.
    #[must_use]
    pub fn is_inexact(&self) -> bool {
        self.spans.iter().any(|span| !span.exact && span.len > 0)
    }

    /// Checks the columns against each other: lengths, mask values, finite log-probs at most 0, spans covering the mask.
    pub fn validate(&self) -> Result<(), InvalidTrajectory> {
        let fail = |why: String| Err(InvalidTrajectory { group: self.group, sample: self.sample, why });
        let t = self.token_ids.len();
        if t == 0 || t > crate::limits::MAX_TOKENS {
            return fail(format!("{t} tokens, allowed 1 to {}", crate::limits::MAX_TOKENS));
        }
        for (name, len) in [("mask", self.mask.len()), ("logp", self.logp.len()), ("logp_sampled", self.logp_sampled.len())] {
            if len != t {
                return fail(format!("{name} has {len} entries for {t} tokens"));
            }
        }
        let mut covered = vec![false; t];
        for span in &self.spans {
            let (start, end) = (span.start as usize, span.start as usize + span.len as usize);
            if end > t {
                return fail(format!("span {start}..{end} is past the end at {t}"));
            }
            covered[start..end].fill(true);
        }
        for (i, covered) in covered.into_iter().enumerate() {
            match self.mask[i] {
                0 => {}
                1 if !covered => return fail(format!("sampled token {i} has no policy version")),
                1 => {
                    for (name, value) in [("logp", self.logp[i]), ("logp_sampled", self.logp_sampled[i])] {
                        if !value.is_finite() || value > 0.0 {
                            return fail(format!("{name}[{i}] = {value}"));
                        }
                    }
                }
                m => return fail(format!("mask[{i}] = {m}")),
            }
        }
        if self.mask[0] == 1 {
            return fail("the first token cannot be a sampled one".into());
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return fail(format!("temperature = {}", self.temperature));
        }
        Ok(())
    }
}

/// A lease's result: all its samples, in order. Travels on a stream of its own and is acknowledged once journalled.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct TrajectoryBatch {
    /// Epoch of the lease.
    pub epoch: Epoch,
    /// Purpose of the lease.
    pub purpose: LeasePurpose,
    /// Group.
    pub group: GroupId,
    /// Attempt of the lease.
    pub attempt: AttemptId,
    /// Its samples by `SampleIx`.
    pub trajectories: Vec<Trajectory>,
}

impl TrajectoryBatch {
    /// Oldest and newest policy version of a sampled token; `None` where nothing was sampled.
    #[must_use]
    pub fn versions(&self) -> Option<(PolicyVersion, PolicyVersion)> {
        let all = || self.trajectories.iter().flat_map(|t| &t.spans).map(|span| span.version);
        all().min().zip(all().max())
    }
}
