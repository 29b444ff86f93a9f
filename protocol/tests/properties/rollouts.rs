//! Between the coordinator and rollout workers.
use crate::records::{f32s, fence, part, text, trajectory, version};
use cohort_protocol::messages::rollout::{
    CancelLease, ContinuedLease, CoordinatorToRollout, LeaseFailed, PartialGroup, Ready, RolloutBeat, RolloutToCoordinator,
    SwapFailed, WeightsReady,
};
use cohort_protocol::{GroupLease, SampledItem, SamplingParams, TrajectoryBatch};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

pub(crate) fn rollout_to_coordinator() -> impl Strategy<Value = RolloutToCoordinator> {
    let batch = (fence(), vec(trajectory(), 0..3)).prop_map(|((epoch, purpose, group, attempt), trajectories)| {
        RolloutToCoordinator::Trajectories(TrajectoryBatch { epoch, purpose, group, attempt, trajectories })
    });
    let failed = (fence(), text(), any::<bool>()).prop_map(|((epoch, purpose, group, attempt), error, retryable)| {
        RolloutToCoordinator::LeaseFailed(LeaseFailed { epoch, purpose, group, attempt, error, retryable })
    });
    prop_oneof![
        (of(version()), any::<u16>()).prop_map(|(version, capacity)| RolloutToCoordinator::Ready(Ready { version, capacity })),
        batch,
        failed,
        any::<(u64, u16)>().prop_map(|(tokens, running)| RolloutToCoordinator::Beat(RolloutBeat { tokens, running })),
        (version(), text()).prop_map(|(version, error)| RolloutToCoordinator::SwapFailed(SwapFailed { version, error })),
        (fence(), vec(part(), 0..3)).prop_map(|((epoch, purpose, group, attempt), parts)| {
            RolloutToCoordinator::Partial(PartialGroup { epoch, purpose, group, attempt, parts })
        }),
    ]
}

pub(crate) fn lease() -> impl Strategy<Value = GroupLease> {
    let sampling = (vec(f32s(), 6), any::<(bool, u32, u32)>()).prop_map(|(f, (greedy, max_new_tokens, top_k))| SamplingParams {
        temperature: f[0],
        greedy,
        max_new_tokens,
        top_k,
        top_p: f[1],
        min_p: f[2],
        repetition_penalty: f[3],
        presence_penalty: f[4],
        frequency_penalty: f[5],
    });
    (fence(), version(), any::<(u16, u64, u64)>(), text(), sampling).prop_map(
        |((epoch, purpose, group, attempt), version, (samples, row, seed), json, sampling)| {
            let item = SampledItem { row, json };
            GroupLease { epoch, purpose, group, attempt, version, follows: samples % 2 == 1, samples, item, seed, sampling }
        },
    )
}

pub(crate) fn coordinator_to_rollout() -> impl Strategy<Value = CoordinatorToRollout> {
    let continued =
        (lease(), vec(part(), 0..3)).prop_map(|(lease, parts)| CoordinatorToRollout::Continue(ContinuedLease { lease, parts }));
    prop_oneof![
        (version(), any::<(u32, u64)>())
            .prop_map(|(version, (slot, digest))| { CoordinatorToRollout::Weights(WeightsReady { version, slot, digest }) }),
        lease().prop_map(CoordinatorToRollout::Lease),
        continued,
        fence().prop_map(|(_, purpose, group, attempt)| CoordinatorToRollout::Cancel(CancelLease { purpose, group, attempt })),
        text().prop_map(CoordinatorToRollout::Drain),
    ]
}
