//! The sum over ranks while the last backward pass goes on: the bits of one rank, in whatever order and buckets gradients come, and no step
//! where a rank is lost on the way.
use crate::collective::{group, on_all};
use crate::toy::{Hook, Moment, Toy, goal_request};
use cohort_engine::Backend;
use cohort_learner::config::TrainingConfig;
use cohort_learner::shards;
use cohort_learner::step::{self, StepFailure};
use cohort_learner::training::Training;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Ranks and shards that they may share.
const KINDS: [(usize, usize); 6] = [(1, 4), (2, 2), (2, 4), (3, 6), (4, 4), (6, 6)];

/// Values that [`Toy::small`] trains.
fn values() -> usize {
    Toy::small(1).weights.0.values().map(|tensor| tensor.data.len()).sum()
}

/// What each rank makes of a step: its weights' digest. `lost`: the connections of this rank end when it is about to say for the nth time, from
/// 1, that it is done with gradients.
fn take((world, logical): (usize, usize), order: &[Range<usize>], lost: Option<(usize, usize)>) -> Vec<Result<u64, StepFailure>> {
    let config = TrainingConfig { groups_per_step: 6, group_size: 4, micro_batch_tokens: 24, ..TrainingConfig::default() };
    let training = Training::try_from(&TrainingConfig { logical_shards: logical as u32, ..config }).unwrap();
    let request = goal_request(&Toy::small(3), 1, 6, 7);
    let plan = step::plan(&training, &request).unwrap();
    let mut group = group(world, Duration::from_secs(20), true);
    let connections = Arc::new(group.connections.clone());
    on_all(&mut group.ranks, |rank, stream| {
        let mut toy = Toy { order: order.to_vec(), ..Toy::small(3) };
        if let Some((_, nth)) = lost.filter(|(lost, _)| *lost == rank) {
            let (passed, connections) = (AtomicUsize::new(0), connections.clone());
            let hook = move || {
                if passed.fetch_add(1, Ordering::Relaxed) + 1 == nth {
                    let own = if rank == 0 { &connections[..] } else { &connections[rank - 1..rank] };
                    own.iter().for_each(|connection| connection.close("killed"));
                }
            };
            toy.on = Some((Moment::Done, Hook(Arc::new(hook))));
        }
        let own = plan.clone().part(shards::of_rank(logical, rank, world));
        let taken = step::take(&mut toy, &training, &request.intent, &own, None, stream, &mut |_, _| {});
        let left = toy.gradients().unwrap().0.into_values().flat_map(|tensor| tensor.data).find(|&value| value != 0.0);
        assert_eq!(left, None, "no gradient is left");
        let digest = toy.digest().unwrap();
        if taken.is_err() {
            assert_eq!(digest, Toy::small(3).digest().unwrap(), "the weights are as before");
        }
        taken.map(|_| digest)
    })
}

/// Cuts in any order.
fn order() -> impl Strategy<Value = Vec<Range<usize>>> {
    prop::collection::btree_set(1..values(), 0..12).prop_flat_map(|cuts| {
        let mut bounds: Vec<usize> = std::iter::once(0).chain(cuts).collect();
        bounds.push(values());
        let ranges: Vec<Range<usize>> = bounds.windows(2).map(|pair| pair[0]..pair[1]).collect();
        Just(ranges).prop_shuffle()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_ranks_and_any_buckets_give_the_bits_of_one_rank(order in order(), kind in prop::sample::select(&KINDS[..])) {
        let alone = take((1, kind.1), &[], None).remove(0).unwrap();
        for digest in take(kind, &order, None) {
            prop_assert_eq!(digest.unwrap(), alone);
        }
        for digest in take(kind, &[], None) {
            prop_assert_eq!(digest.unwrap(), alone, "where an engine shows its gradients at the end");
        }
    }
}

#[test]
fn a_rank_lost_at_any_bucket_ends_the_step_of_all_and_leaves_nothing() {
    let (len, buckets) = (values(), 7);
    let order: Vec<Range<usize>> = (0..buckets).rev().map(|at| at * len / buckets..(at + 1) * len / buckets).collect();
    for (kind, lost) in [((2, 4), 0), ((2, 4), 1), ((3, 6), 2)] {
        for nth in 1..=buckets {
            for (rank, taken) in take(kind, &order, Some((lost, nth))).into_iter().enumerate() {
                let failure = taken.expect_err("nobody has the whole sum");
                assert!(!failure.error.is_fatal() && failure.updates == 0, "rank {rank}, bucket {nth}: {failure}");
            }
        }
    }
}
