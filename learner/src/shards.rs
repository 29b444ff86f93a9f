//! Logical shards: why any number of ranks gives a step the same bits.
//!
//! The groups of a step are cut, in the intent's order, into S shards ([`groups`]). Each shard's gradient is accumulated apart,
//! and the S gradients are summed in one tree: neighbours first, then neighbours of sums, the odd last one moving up as it is.
//!
//! ```text
//! S = 4    ((0 + 1) + (2 + 3))          S = 6    (((0 + 1) + (2 + 3)) + (4 + 5))
//! ```
//!
//! R ranks take S / R neighbouring shards each. Where that is a power of two, a rank's shards are a node of the tree, and
//! adding the ranks up in the tree over R is the rest of the tree over S ([`admits`]). So the tree, and with it every
//! rounding, depends on S alone, which is part of the run's numerics.
use crate::collective::{Collective, CollectiveError};
use cohort_engine::{AdamW, Backend, EngineError, Partition};
use cohort_kernels::tree::add;
use std::ops::{ControlFlow, Range};

/// The groups, of `count`, that a range of the `of` shards has: as even as whole groups allow.
#[must_use]
pub fn groups(count: usize, of: usize, shards: &Range<usize>) -> Range<usize> {
    shards.start * count / of..shards.end * count / of
}

/// Whether so many ranks can share so many shards without changing the tree.
#[must_use]
pub fn admits(shards: usize, ranks: usize) -> bool {
    ranks == 1 || (ranks > 1 && shards.is_multiple_of(ranks) && (shards / ranks).is_power_of_two())
}

/// The most ranks, of those present, that can share so many shards.
#[must_use]
pub fn most(shards: usize, present: usize) -> usize {
    (1..=present).rev().find(|&ranks| admits(shards, ranks)).unwrap_or(1)
}

/// The shards of one of the ranks.
#[must_use]
pub fn of_rank(shards: usize, rank: usize, ranks: usize) -> Range<usize> {
    rank * shards / ranks..(rank + 1) * shards / ranks
}

/// The part of the tree over one rank's shards. Closed shards wait until their neighbour is there: at most log2 of their
/// number at a time, each as large as the gradient.
#[derive(Debug, Default)]
pub(crate) struct GradientTree {
    /// Sums of 2^level shards each, levels falling.
    waiting: Vec<(u32, Vec<f32>)>,
}

impl GradientTree {
    /// The engine's gradients are those of the next shard. After the last one they are the sum of all, else zero.
    pub(crate) fn close(&mut self, engine: &mut dyn Backend, last: bool) -> Result<(), EngineError> {
        let mut level = 0;
        while let Some((waits, sum)) = self.waiting.pop_if(|(waits, _)| last || *waits == level) {
            let mut rest = &sum[..];
            engine.each_gradient(&mut |bucket| {
                let (own, others) = rest.split_at(bucket.len());
                add(bucket, own);
                rest = others;
                ControlFlow::Continue(())
            })?;
            level = waits + 1;
        }
        if !last {
            let mut sum = Vec::new();
            engine.each_gradient(&mut |bucket| {
                sum.extend_from_slice(bucket);
                ControlFlow::Continue(())
            })?;
            engine.zero_grad();
            self.waiting.push((level, sum));
        }
        Ok(())
    }

    /// [`GradientTree::close`] after the last shard, of a part of the gradients: `values` are those at `range` among all.
    pub(crate) fn fold(&self, range: Range<usize>, values: &mut [f32]) {
        self.waiting.iter().rev().for_each(|(_, sum)| add(values, &sum[range.clone()]));
    }
}

/// An update by ranks of which each keeps a part of the optimizer's state: each updates its part and has the others' from them.
/// An update is the same for every value wherever it is done, so the weights have the bits of one rank that keeps it whole.
///
/// # Errors
/// Those of the engine are before any change; a rank that is lost leaves weights that are no version's.
pub(crate) fn update_parts(
    engine: &mut dyn Backend,
    (optimizer, learning_rate, scale): (&AdamW, f64, f64),
    ranks: &mut dyn Collective,
) -> Result<Result<(), CollectiveError>, EngineError> {
    let mut failed = None;
    engine.update_partition(optimizer, learning_rate, scale, &mut |bucket| {
        let parts: Vec<Range<usize>> = Partition::all(ranks.world()).map(|part| part.range(bucket.len())).collect();
        match ranks.all_gather(bucket, &parts) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    Ok(failed.map_or(Ok(()), Err))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree as text, by joining names instead of adding numbers.
    fn tree(names: &[String]) -> String {
        let mut nodes = names.to_vec();
        while nodes.len() > 1 {
            nodes = nodes
                .chunks(2)
                .map(|pair| if pair.len() == 2 { format!("({}+{})", pair[0], pair[1]) } else { pair[0].clone() })
                .collect();
        }
        nodes.remove(0)
    }

    #[test]
    fn ranks_that_are_admitted_do_not_change_the_tree() {
        let names = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        for shards in 1..=24 {
            for ranks in (1..=shards).filter(|&ranks| admits(shards, ranks)) {
                let nodes: Vec<String> = (0..ranks).map(|rank| tree(&names(shards)[of_rank(shards, rank, ranks)])).collect();
                assert_eq!(tree(&nodes), tree(&names(shards)), "{ranks} ranks on {shards} shards");
            }
        }
        assert!(!admits(6, 2) && !admits(4, 3) && !admits(1, 2) && admits(6, 3) && admits(3, 3));
        assert_eq!([(4, 3), (4, 9), (6, 5), (1, 8)].map(|(shards, present)| most(shards, present)), [2, 4, 3, 1]);
    }

    /// Numbers whose sum shows in which order it was made.
    #[test]
    fn every_group_is_in_one_shard() {
        for (count, of) in [(4, 4), (7, 4), (16, 6), (5, 5)] {
            let cuts: Vec<_> = (0..of).map(|shard| groups(count, of, &(shard..shard + 1))).collect();
            assert!(cuts.iter().all(|cut| !cut.is_empty()) && cuts[0].start == 0 && cuts[of - 1].end == count);
            assert!(cuts.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!(groups(count, of, &(0..of)), 0..count);
        }
    }
}
