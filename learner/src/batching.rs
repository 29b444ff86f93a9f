//! From groups to micro-batches under a token budget.
//!
//! Invariants
//! - **B1** the plan is a function of the groups in intent order and the budget alone: never of arrival or memory.
//! - **B2** a sequence is whole in one micro-batch, samples keep their order, and every micro-batch but a lone oversized
//!   sequence fits the budget. What samples of one group have in common before their first target, the prompt, counts once in
//!   a micro-batch and is computed once, forward and backward.
//! - **B3** the divisors count all samples of the step, also those without a sampled token, before anything is split.
use crate::algo::Denominators;
use cohort_engine::{PackedBatch, PackedSequence};
use cohort_protocol::{GroupId, GroupPayload, PolicyVersion, SampleIx, ScoredTrajectory, Trajectory};
use std::ops::Range;

/// How a sampled token stands to the policy that a step starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Drawn from that very policy: the learner's log-prob must be the stored one, to the bit.
    Base,
    /// Drawn from an older version.
    Stale,
    /// Drawn with log-probs that are no version's own ([`cohort_protocol::VersionSpan::exact`]).
    Inexact,
}

/// One sequence to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// For messages: whose it is.
    pub id: (GroupId, SampleIx),
    /// Tokens up to the last target; what comes after it cannot change a log-prob that is wanted. `[T]`
    pub tokens: Vec<u32>,
    /// Positions of the sampled tokens, ascending. `[N]`
    pub targets: Vec<u32>,
    /// Temperature of the log-probs.
    pub temperature: f32,
    /// Stored log-prob of each target. `[N]`
    pub logp_old: Vec<f32>,
    /// Stored log-prob under the distribution really drawn from. `[N]`
    pub logp_sampled: Vec<f32>,
    /// Where each target came from. `[N]`
    pub origin: Vec<Origin>,
    /// Its advantage.
    pub advantage: f64,
}

impl Sample {
    /// What a step from `base` needs of a trajectory. The masked tokens are the targets.
    #[must_use]
    pub fn from_trajectory(scored: &ScoredTrajectory, advantage: f64, base: PolicyVersion) -> Self {
        let t = &scored.trajectory;
        let targets = masked(&t.mask);
        let column = |values: &[f32]| targets.iter().map(|&i| values[i as usize]).collect();
        let origins = origins(t, base);
        Self {
            id: (t.group, t.sample),
            tokens: up_to_last(&t.token_ids, &targets),
            logp_old: column(&t.logp),
            logp_sampled: column(&t.logp_sampled),
            origin: targets.iter().map(|&i| origins[i as usize]).collect(),
            targets,
            temperature: t.temperature,
            advantage,
        }
    }

    /// A sequence to imitate where `mask` is 1 (`mask[0]` is not looked at: the first token has no context).
    /// `row` is for messages.
    #[must_use]
    pub fn supervised(row: u64, tokens: &[u32], mask: &[u8]) -> Self {
        let targets = masked(mask);
        let zeros = vec![0.0; targets.len()];
        Self {
            id: (GroupId(row), SampleIx(0)),
            tokens: up_to_last(tokens, &targets),
            logp_old: zeros.clone(),
            logp_sampled: zeros,
            origin: vec![Origin::Base; targets.len()],
            targets,
            temperature: 1.0,
            advantage: 1.0,
        }
    }
}

/// How sequences are put together; part of the run's numerics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Tokens of a micro-batch, at least 1.
    pub micro_batch_tokens: usize,
    /// Whether a group's prompt is computed once.
    pub share_prompts: bool,
}

/// Sequences computed together, with what the loss reads beside their log-probs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MicroBatch {
    /// Input of the engine.
    pub batch: PackedBatch,
    /// Whose each sequence is. `[S]`
    pub ids: Vec<(GroupId, SampleIx)>,
    /// Targets of each sequence. `[S]`
    pub sequences: Vec<Range<usize>>,
    /// Advantage of each sequence. `[S]`
    pub advantages: Vec<f64>,
    /// Stored log-prob of each target. `[N]`
    pub logp_old: Vec<f32>,
    /// Stored log-prob under the distribution really drawn from. `[N]`
    pub logp_sampled: Vec<f32>,
    /// Where each target came from. `[N]`
    pub origin: Vec<Origin>,
}

impl MicroBatch {
    /// Leading tokens that a further sample has in common with the last one computed whole.
    fn common(&self, sample: &Sample) -> u32 {
        let whole = self.batch.sequences.iter().zip(&self.ids).rfind(|(s, _)| s.shared == 0);
        let Some((first, _)) = whole.filter(|(_, id)| id.0 == sample.id.0) else { return 0 };
        let same = first.tokens.iter().zip(&sample.tokens).take_while(|(a, b)| a == b).count() as u32;
        let ends = [sample.targets.first(), first.targets.first()].into_iter().flatten().copied();
        ends.fold(same, u32::min)
    }

    fn push(&mut self, sample: Sample, shared: u32) {
        let start = self.logp_old.len();
        self.sequences.push(start..start + sample.targets.len());
        self.ids.push(sample.id);
        self.advantages.push(sample.advantage);
        self.logp_old.extend(sample.logp_old);
        self.logp_sampled.extend(sample.logp_sampled);
        self.origin.extend(sample.origin);
        let Sample { tokens, targets, temperature, .. } = sample;
        self.batch.sequences.push(PackedSequence { tokens, targets, temperature, shared });
    }

    /// Whose target `i` is.
    #[must_use]
    pub fn owner(&self, i: usize) -> (GroupId, SampleIx) {
        let at = self.sequences.iter().position(|range| range.contains(&i));
        at.map_or((GroupId(0), SampleIx(0)), |at| self.ids[at])
    }
}

/// A step's work, or a rank's part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Micro-batches of each logical shard, in order.
    pub shards: Vec<Vec<MicroBatch>>,
    /// Counted over the whole step.
    pub totals: Denominators,
}

impl Plan {
    /// One shard of these samples.
    #[must_use]
    pub fn new(samples: impl IntoIterator<Item = Sample>, packing: Packing) -> Self {
        let mut totals = Denominators { sequences: 0, tokens: 0 };
        Self { shards: vec![pack(samples, packing, &mut totals)], totals }
    }

    /// The plan of a step from the policy version `base` over shards of these groups. The divisors are those of these groups.
    #[must_use]
    pub fn of_shards<'a>(shards: impl IntoIterator<Item = &'a [GroupPayload]>, base: PolicyVersion, packing: Packing) -> Self {
        let mut totals = Denominators { sequences: 0, tokens: 0 };
        let shards = shards.into_iter().map(|groups| {
            let samples = groups.iter().flat_map(|g| g.samples.iter().zip(&g.advantages));
            let samples = samples.map(|(scored, &advantage)| Sample::from_trajectory(scored, advantage, base));
            pack(samples, packing, &mut totals)
        });
        Self { shards: shards.collect(), totals }
    }

    /// The micro-batches of all shards, in order.
    pub fn micro_batches(&self) -> impl Iterator<Item = &MicroBatch> {
        self.shards.iter().flatten()
    }

    /// The part of some of its shards, with the divisors of the whole.
    #[must_use]
    pub fn part(mut self, shards: Range<usize>) -> Self {
        self.shards = self.shards.drain(shards).collect();
        self
    }
}

/// Packs samples, in order, into micro-batches within the budget. Samples without a target count in the divisors and are not
/// computed.
fn pack(samples: impl IntoIterator<Item = Sample>, packing: Packing, totals: &mut Denominators) -> Vec<MicroBatch> {
    let (mut parts, mut open) = (Vec::new(), MicroBatch::default());
    for sample in samples {
        totals.sequences += 1;
        totals.tokens += sample.targets.len() as u64;
        if sample.targets.is_empty() {
            continue;
        }
        let mut shared = if packing.share_prompts { open.common(&sample) } else { 0 };
        let tokens = open.batch.tokens() + sample.tokens.len() - shared as usize;
        if !open.ids.is_empty() && tokens > packing.micro_batch_tokens {
            parts.push(std::mem::take(&mut open));
            shared = 0;
        }
        open.push(sample, shared);
    }
    if !open.ids.is_empty() {
        parts.push(open);
    }
    parts
}

/// By token; what no span covers was not sampled and is not looked at.
fn origins(t: &Trajectory, base: PolicyVersion) -> Vec<Origin> {
    let mut origins = vec![Origin::Base; t.len()];
    for span in &t.spans {
        let (start, end) = (span.start as usize, span.start as usize + span.len as usize);
        let origin = match () {
            () if !span.exact => Origin::Inexact,
            () if span.version != base => Origin::Stale,
            () => Origin::Base,
        };
        origins[start..end].fill(origin);
    }
    origins
}

fn masked(mask: &[u8]) -> Vec<u32> {
    (1u32..).zip(mask.iter().skip(1)).filter(|&(_, &m)| m == 1).map(|(i, _)| i).collect()
}

fn up_to_last(tokens: &[u32], targets: &[u32]) -> Vec<u32> {
    let len = targets.last().map_or(0, |&last| last as usize + 1);
    tokens[..len.min(tokens.len())].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(row: u64, mask: &[u8]) -> Sample {
        Sample::supervised(row, &(0..mask.len() as u32).collect::<Vec<_>>(), mask)
    }

    fn packing(micro_batch_tokens: usize) -> Packing {
        Packing { micro_batch_tokens, share_prompts: true }
    }

    /// A sample of a group: the group's prompt, then tokens of its own.
    fn member(group: u64, prompt: &[u32], own: &[u32]) -> Sample {
        let tokens = [prompt, own].concat();
        let mask: Vec<u8> = (0..tokens.len()).map(|i| u8::from(i >= prompt.len())).collect();
        Sample::supervised(group, &tokens, &mask)
    }

    #[test]
    fn a_groups_prompt_counts_once_in_a_micro_batch() {
        let group = |id, prompt: &'static [u32]| (0..3u32).map(move |i| member(id, prompt, &[50 + i, 60]));
        let samples: Vec<Sample> = group(1, &[7, 8, 9]).chain(group(2, &[7, 8, 9])).collect();
        let shared = |plan: &Plan| -> Vec<Vec<u32>> {
            plan.micro_batches().map(|m| m.batch.sequences.iter().map(|s| s.shared).collect()).collect()
        };
        let plan = Plan::new(samples.clone(), packing(18));
        assert_eq!(shared(&plan), [vec![0, 3, 3, 0, 3, 3]], "other groups share nothing, though their prompts are equal");
        assert_eq!(plan.shards[0][0].batch.tokens(), 18);
        assert_eq!(shared(&Plan::new(samples.clone(), packing(7))), [vec![0, 3], vec![0], vec![0, 3], vec![0]]);
        let apart = Plan::new(samples, Packing { share_prompts: false, ..packing(18) });
        assert_eq!(shared(&apart), [vec![0; 3], vec![0; 3]]);
    }

    #[test]
    fn what_is_sampled_alike_is_not_shared() {
        let plan = Plan::new([member(1, &[7, 8], &[5, 5, 6]), member(1, &[7, 8], &[5, 5, 9])], packing(100));
        assert_eq!(plan.shards[0][0].batch.sequences[1].shared, 2, "every sampled token keeps a gradient of its own");
    }

    #[test]
    fn masked_tokens_are_the_targets_and_the_tail_is_cut() {
        let s = sample(3, &[1, 0, 1, 1, 0, 0]);
        assert_eq!((s.tokens.as_slice(), s.targets.as_slice()), ([0, 1, 2, 3].as_slice(), [2, 3].as_slice()));
    }

    #[test]
    fn an_oversized_sequence_goes_alone() {
        let plan = Plan::new([sample(0, &[0, 1]), sample(1, &[0, 0, 0, 0, 0, 1]), sample(2, &[0, 1])], packing(4));
        let rows: Vec<Vec<u64>> = plan.micro_batches().map(|m| m.ids.iter().map(|id| id.0.0).collect()).collect();
        assert_eq!(rows, [vec![0], vec![1], vec![2]]);
    }

    #[test]
    fn a_sample_without_targets_still_counts() {
        let plan = Plan::new([sample(0, &[0, 0]), sample(1, &[0, 1])], packing(64));
        assert_eq!(plan.totals, Denominators { sequences: 2, tokens: 1 });
        assert_eq!(plan.shards[0][0].ids.len(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_the_order_stays(
            masks in proptest::collection::vec(proptest::collection::vec(0u8..=1, 1..40), 0..30),
            budget in 1usize..100,
        ) {
            let samples: Vec<Sample> = masks.iter().enumerate().map(|(i, m)| sample(i as u64, m)).collect();
            let plan = Plan::new(samples.clone(), packing(budget));
            let kept: Vec<&Sample> = samples.iter().filter(|s| !s.targets.is_empty()).collect();
            let ids: Vec<_> = plan.micro_batches().flat_map(|m| m.ids.clone()).collect();
            prop_assert_eq!(ids, kept.iter().map(|s| s.id).collect::<Vec<_>>());
            prop_assert_eq!(plan.totals.sequences, samples.len() as u64);
            prop_assert_eq!(plan.totals.tokens, kept.iter().map(|s| s.targets.len() as u64).sum::<u64>());
            for m in plan.micro_batches() {
                prop_assert!(m.batch.tokens() <= budget || m.ids.len() == 1);
                prop_assert_eq!(m.logp_old.len(), m.batch.targets());
                for (range, sequence) in m.sequences.iter().zip(&m.batch.sequences) {
                    prop_assert_eq!(range.len(), sequence.targets.len());
                }
            }
        }
    }
}
