//! Round trips of arbitrary messages: the same bits come back, NaNs and all, from every table. A file a table, and `records` for
//! what they share.
#![expect(clippy::unwrap_used, reason = "outside of `#[test]` functions the lint does not see that this is a test")]
mod learners;
mod ledgers;
mod nodes;
mod records;
mod rewards;
mod rollouts;
mod weights;

use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::handshake::{Handshake, Hello, Refused, Welcome};
use cohort_protocol::messages::keepers::{AskerToKeeper, KeeperToAsker};
use cohort_protocol::messages::learner::{CoordinatorToLearner, LearnerToCoordinator};
use cohort_protocol::messages::node::{HeadToNode, NodeToHead};
use cohort_protocol::messages::ranks::BetweenRanks;
use cohort_protocol::messages::reward::{CoordinatorToReward, RewardToCoordinator};
use cohort_protocol::messages::rollout::{CoordinatorToRollout, RolloutToCoordinator};
use cohort_protocol::messages::seeking::{KeeperToNode, NodeToKeeper};
use cohort_protocol::messages::weights::{FetcherToHolder, HolderToFetcher};
use cohort_protocol::{Epoch, Frame, Role, RunId, WorkerId};
use learners::{between_ranks, coordinator_to_learner, learner_to_coordinator};
use ledgers::{asker_to_keeper, keeper_to_asker, keeper_to_node};
use nodes::{head_to_node, node_to_head};
use proptest::collection::vec;
use proptest::prelude::*;
use records::text;
use rewards::{coordinator_to_reward, reward_to_coordinator};
use rollouts::{coordinator_to_rollout, rollout_to_coordinator};
use weights::{fetcher_to_holder, holder_to_fetcher};

fn handshake() -> impl Strategy<Value = Handshake> {
    let role = prop_oneof![Just(Role::Coordinator), Just(Role::Rollout), Just(Role::Reward), Just(Role::Learner)];
    let hello = (any::<(u16, u16, u64, u16, u32, u32)>(), role, text()).prop_map(
        |((protocol_min, protocol_max, run, index, pid, incarnation), role, numerics)| Hello {
            protocol_min,
            protocol_max,
            run: RunId(run),
            worker: WorkerId { role, index },
            pid,
            incarnation,
            numerics,
        },
    );
    prop_oneof![
        hello.prop_map(Handshake::Hello),
        any::<(u16, u64)>().prop_map(|(protocol, e)| Handshake::Welcome(Welcome { protocol, epoch: Epoch(e) })),
        text().prop_map(|reason| Handshake::Refused(Refused { reason })),
    ]
}

/// Over the wire and back; frames are compared, since a NaN differs from itself.
fn round_trip<M: WireMessage>(message: &M) -> Result<(), TestCaseError> {
    let frame = message.to_frame().unwrap();
    let bytes = frame.to_bytes();
    prop_assert_eq!(bytes.len() as u64, frame.wire_len());
    let received = Frame::from_payload(&bytes[4..]).unwrap();
    let again = M::from_frame(&received).unwrap().to_frame().unwrap();
    prop_assert_eq!(again, frame);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn handshake_round_trips(message in handshake()) { round_trip(&message)? }

    #[test]
    fn rollout_to_coordinator_round_trips(message in rollout_to_coordinator()) { round_trip(&message)? }

    #[test]
    fn coordinator_to_rollout_round_trips(message in coordinator_to_rollout()) { round_trip(&message)? }

    #[test]
    fn reward_to_coordinator_round_trips(message in reward_to_coordinator()) { round_trip(&message)? }

    #[test]
    fn coordinator_to_reward_round_trips(message in coordinator_to_reward()) { round_trip(&message)? }

    #[test]
    fn learner_to_coordinator_round_trips(message in learner_to_coordinator()) { round_trip(&message)? }

    #[test]
    fn coordinator_to_learner_round_trips(message in coordinator_to_learner()) { round_trip(&message)? }

    #[test]
    fn node_to_head_round_trips(message in node_to_head()) { round_trip(&message)? }

    #[test]
    fn head_to_node_round_trips(message in head_to_node()) { round_trip(&message)? }

    #[test]
    fn fetcher_to_holder_round_trips(message in fetcher_to_holder()) { round_trip(&message)? }

    #[test]
    fn holder_to_fetcher_round_trips(message in holder_to_fetcher()) { round_trip(&message)? }

    #[test]
    fn between_ranks_round_trips(message in between_ranks()) { round_trip(&message)? }

    #[test]
    fn asker_to_keeper_round_trips(message in asker_to_keeper()) { round_trip(&message)? }

    #[test]
    fn keeper_to_asker_round_trips(message in keeper_to_asker()) { round_trip(&message)? }

    #[test]
    fn node_to_keeper_round_trips(id in any::<u64>()) { round_trip(&NodeToKeeper::WhoLeads(id))? }

    #[test]
    fn keeper_to_node_round_trips(message in keeper_to_node()) { round_trip(&message)? }

    /// Whatever bytes come, decoding ends in a message that encodes to just them, or in an error.
    #[test]
    fn arbitrary_frames_never_panic(direction in 0u8..18, tag in 0u8..13, body in vec(prop_oneof![Just(0u8), any::<u8>()], 0..160)) {
        let frame = Frame { direction, tag, body: body.into() };
        canonical::<Handshake>(&frame);
        canonical::<RolloutToCoordinator>(&frame);
        canonical::<CoordinatorToRollout>(&frame);
        canonical::<RewardToCoordinator>(&frame);
        canonical::<CoordinatorToReward>(&frame);
        canonical::<LearnerToCoordinator>(&frame);
        canonical::<CoordinatorToLearner>(&frame);
        canonical::<NodeToHead>(&frame);
        canonical::<HeadToNode>(&frame);
        canonical::<FetcherToHolder>(&frame);
        canonical::<HolderToFetcher>(&frame);
        canonical::<BetweenRanks>(&frame);
        canonical::<AskerToKeeper>(&frame);
        canonical::<KeeperToAsker>(&frame);
        canonical::<NodeToKeeper>(&frame);
        canonical::<KeeperToNode>(&frame);
    }
}

fn canonical<M: WireMessage>(frame: &Frame) {
    if let Ok(message) = M::from_frame(frame) {
        assert_eq!(&message.to_frame().unwrap(), frame);
    }
}

/// A short body that claims long contents takes memory in proportion to its own length.
#[test]
fn claims_do_not_allocate() {
    let mut body = Vec::new();
    body.extend_from_slice(&[0; 8]); // epoch
    body.extend_from_slice(&[0; 4]); // purpose: train
    body.extend_from_slice(&[0; 12]); // group, attempt
    for claimed in [1u64 << 20, 200 << 20, u64::MAX / 1000] {
        let mut body = body.clone();
        body.extend_from_slice(&claimed.to_le_bytes());
        let frame = Frame { direction: 2, tag: 2, body: body.into() };
        let error = RolloutToCoordinator::from_frame(&frame).unwrap_err().to_string();
        assert!(error.contains("LimitExceeded"), "{claimed} trajectories: {error}");
    }
}
