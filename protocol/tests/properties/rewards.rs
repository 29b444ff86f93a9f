//! Between the coordinator and reward workers.
use crate::records::{fence, score, text, turn};
use cohort_protocol::messages::reward::{
    CoordinatorToReward, RewardBeat, RewardToCoordinator, SampleToScore, ScoreReply, ScoreRequest,
};
use cohort_protocol::score::SampleOutcome;
use cohort_protocol::{SampleIx, ScoreOutcome};
use proptest::collection::vec;
use proptest::prelude::*;

pub(crate) fn reward_to_coordinator() -> impl Strategy<Value = RewardToCoordinator> {
    let outcome = prop_oneof![
        score().prop_map(ScoreOutcome::Scored),
        (text(), any::<bool>()).prop_map(|(error, retryable)| ScoreOutcome::Failed { error, retryable }),
    ];
    let outcome = (any::<u16>(), outcome).prop_map(|(s, outcome)| SampleOutcome { sample: SampleIx(s), outcome });
    let reply = (fence(), vec(outcome, 0..4), any::<u64>()).prop_map(|((epoch, purpose, group, attempt), outcomes, score_us)| {
        RewardToCoordinator::Scored(ScoreReply { epoch, purpose, group, attempt, outcomes, score_us })
    });
    let beat = (any::<(u64, u16)>(), vec((text(), text()), 0..3))
        .prop_map(|((progress, running), breakers)| RewardToCoordinator::Beat(RewardBeat { progress, running, breakers }));
    prop_oneof![any::<u16>().prop_map(RewardToCoordinator::Ready), reply, beat]
}

pub(crate) fn coordinator_to_reward() -> impl Strategy<Value = CoordinatorToReward> {
    let sample = (any::<u16>(), vec(turn(), 0..3), text()).prop_map(|(s, turns, context_json)| SampleToScore {
        sample: SampleIx(s),
        turns,
        context_json,
    });
    let request = (fence(), text(), any::<u64>(), vec(sample, 0..3)).prop_map(
        |((epoch, purpose, group, attempt), item_json, seed, samples)| {
            CoordinatorToReward::Score(ScoreRequest { epoch, purpose, group, attempt, item_json, seed, samples })
        },
    );
    prop_oneof![request, text().prop_map(CoordinatorToReward::Drain)]
}
