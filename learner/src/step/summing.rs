//! The sum over ranks, while the last backward pass goes on: what it is done with is on its way while earlier layers are computed.
//!
//! ```text
//! engine's thread   layer 2 | layer 1 | layer 0 | rest     (gradients of a rank's last micro-batch)
//!                        \\ copy   ^ sum
//! this rank's thread      all-reduce of layer 2 | of layer 1 | ..
//! ```
//!
//! Invariants
//! - **O1** every rank makes the same calls in the same order: the notes of its metrics, then the buckets of the engine's order,
//!   whenever they are ready; those that no pass has shown follow at its end.
//! - **O2** a value's sum is that of the tree over all shards, whatever bucket it travels in.
//! - **O3** at most [`AHEAD`] buckets are copied and not yet back: who computes then waits for who sums.
//! - **O4** a rank that is lost is noticed by the sum and breaks the pass off. Waits are those of the collective, each of which ends.
use super::error::{StepError, engine_error};
use super::gradient::Gradients;
use crate::collective::{Collective, CollectiveError};
use crate::metrics::{self, Tally};
use crate::shards::GradientTree;
use cohort_engine::{Backend, Upstream};
use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Values of a bucket, at most: 4 MiB.
const BUCKET: usize = 1 << 20;
/// Buckets that are on their way.
const AHEAD: usize = 4;

/// The last backward pass of a rank, where there is something to reverse; then the sum of all shards and ranks is in the engine's gradients.
/// Gives rank 0 everyone's metrics.
pub(super) fn finish(
    engine: &mut dyn Backend,
    mut tree: GradientTree,
    tallies: Vec<Tally>,
    last: Option<Gradients>,
    ranks: &mut dyn Collective,
) -> Result<Tally, StepError> {
    let left: VecDeque<_> = engine.gradient_order().iter().flat_map(cut).collect();
    if ranks.world() == 1 || left.is_empty() {
        if let Some((d_logp, d_entropy)) = last {
            engine.backward(Upstream { d_logp: &d_logp, d_entropy: d_entropy.as_deref() }).map_err(engine_error("backward"))?;
        }
        tree.close(engine, true).map_err(engine_error("sum of shards"))?;
        let metrics = metrics::gather(tallies, ranks)?;
        all_reduce(engine, ranks)?;
        return Ok(metrics);
    }
    std::thread::scope(|scope| {
        // Neither ever fills: no more are on their way.
        let ((give, given), (back, summed)) = (sync_channel(AHEAD), sync_channel(AHEAD));
        let carrier = scope.spawn(move || carry(tallies, ranks, &given, &back));
        let mut pass = Pass { tree: &tree, left, away: VecDeque::new(), give, summed };
        let reversed = reverse(engine, last, &mut pass);
        // With it the carrier's work ends.
        drop(pass);
        let carried = carrier.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        reversed.and_then(|()| carried.map_err(StepError::from))
    })
}

fn reverse(engine: &mut dyn Backend, last: Option<Gradients>, pass: &mut Pass<'_>) -> Result<(), StepError> {
    if let Some((d_logp, d_entropy)) = last {
        let upstream = Upstream { d_logp: &d_logp, d_entropy: d_entropy.as_deref() };
        let passed = engine.backward_in_order(upstream, &mut |all, done| pass.show(all, &done));
        passed.map_err(engine_error("backward"))?;
    }
    engine.each_gradient(&mut |all| pass.end(all)).map_err(engine_error("sum over ranks"))
}

/// Buckets between a pass and whoever sums them.
struct Pass<'a> {
    tree: &'a GradientTree,
    /// In the order in which they go.
    left: VecDeque<Range<usize>>,
    away: VecDeque<Range<usize>>,
    give: SyncSender<Vec<f32>>,
    summed: Receiver<Vec<f32>>,
}

impl Pass<'_> {
    /// The pass is done with a range of `all`. Breaks off where no sum comes any more.
    fn show(&mut self, all: &mut [f32], done: &Range<usize>) -> ControlFlow<()> {
        while let Some(range) = self.left.pop_front_if(|range| done.start <= range.start && range.end <= done.end) {
            while self.away.len() >= AHEAD {
                self.wait(all)?;
            }
            while let Ok(sum) = self.summed.try_recv() {
                self.put(all, &sum);
            }
            let values = &mut all[range.clone()];
            self.tree.fold(range.clone(), values);
            if self.give.send(values.to_vec()).is_err() {
                return ControlFlow::Break(());
            }
            self.away.push_back(range);
        }
        ControlFlow::Continue(())
    }

    /// What no pass has shown, and whatever is still on its way.
    fn end(&mut self, all: &mut [f32]) -> ControlFlow<()> {
        self.show(all, &(0..all.len()))?;
        while !self.away.is_empty() {
            self.wait(all)?;
        }
        ControlFlow::Continue(())
    }

    fn wait(&mut self, all: &mut [f32]) -> ControlFlow<()> {
        match self.summed.recv() {
            Ok(sum) => {
                self.put(all, &sum);
                ControlFlow::Continue(())
            }
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// They come back in the order in which they went.
    fn put(&mut self, all: &mut [f32], sum: &[f32]) {
        if let Some(range) = self.away.pop_front() {
            all[range].copy_from_slice(sum);
        }
    }
}

/// The collective's side.
fn carry(
    tallies: Vec<Tally>,
    ranks: &mut dyn Collective,
    given: &Receiver<Vec<f32>>,
    back: &SyncSender<Vec<f32>>,
) -> Result<Tally, CollectiveError> {
    let metrics = metrics::gather(tallies, ranks)?;
    while let Ok(mut bucket) = given.recv() {
        ranks.all_reduce(&mut bucket)?;
        if back.send(bucket).is_err() {
            break;
        }
    }
    Ok(metrics)
}

/// Pieces of at most [`BUCKET`] values.
fn cut(range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = range.end;
    range.clone().step_by(BUCKET).map(move |start| start..(start + BUCKET).min(end))
}

/// Replaces the engine's gradients by the sum of every rank's.
fn all_reduce(engine: &mut dyn Backend, ranks: &mut dyn Collective) -> Result<(), StepError> {
    if ranks.world() == 1 {
        return Ok(());
    }
    let mut failed = None;
    let shown = engine.each_gradient(&mut |bucket| match ranks.all_reduce(bucket) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    });
    shown.map_err(|source| StepError::Engine { during: "sum over ranks", source })?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_into_buckets_without_gap() {
        for range in [0..0, 5..6, 7..7 + BUCKET, 32..33 + 3 * BUCKET] {
            let pieces: Vec<_> = cut(&range).collect();
            assert!(pieces.iter().all(|piece| (1..=BUCKET).contains(&piece.len())));
            assert!(pieces.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!(pieces.iter().map(Range::len).sum::<usize>(), range.len());
            assert!(pieces.first().is_none_or(|first| first.start == range.start));
        }
    }
}
