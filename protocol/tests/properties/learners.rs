//! Between the coordinator and the learner, and between the learner's ranks.
use crate::records::{f64s, group, intent, text, version};
use cohort_protocol::codec::Column;
use cohort_protocol::messages::learner::{
    CheckpointRequest, CheckpointSaved, CoordinatorToLearner, Fault, LearnerBeat, LearnerFailed, LearnerToCoordinator, Load,
    LoadFrom, Loaded, PublishRequest, Published, StepRequest, Stepped,
};
use cohort_protocol::messages::ranks::{BetweenRanks, Holding, RankFailed, RankMemory, RankPart, RankState, RankStep};
use cohort_protocol::{Epoch, PolicyVersion, StepCommit, StepId};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

pub(crate) fn learner_to_coordinator() -> impl Strategy<Value = LearnerToCoordinator> {
    let epoch = || any::<u64>().prop_map(Epoch);
    let commit = (any::<(u64, u64, u64)>(), text(), vec((text(), f64s()), 0..4)).prop_map(
        |((step, version, weights_digest), weights_sha256, metrics)| {
            let (step, version) = (StepId(step), PolicyVersion(version));
            StepCommit { step, version, weights_sha256, weights_digest, metrics }
        },
    );
    let fault = prop_oneof![Just(Fault::Worker), Just(Fault::Compute), Just(Fault::System)];
    prop_oneof![
        of(version()).prop_map(LearnerToCoordinator::Ready),
        (epoch(), version(), any::<u64>(), text()).prop_map(|(epoch, version, digest, sha256)| {
            LearnerToCoordinator::Loaded(Loaded { epoch, version, digest, sha256 })
        }),
        (epoch(), commit).prop_map(|(epoch, commit)| LearnerToCoordinator::Stepped(Stepped { epoch, commit })),
        (epoch(), version(), any::<(u32, u64, u64)>()).prop_map(|(epoch, version, (slot, digest, publish_us))| {
            LearnerToCoordinator::Published(Published { epoch, version, slot, digest, publish_us })
        }),
        (epoch(), version(), text(), text()).prop_map(|(epoch, version, dir, manifest_sha256)| {
            LearnerToCoordinator::CheckpointSaved(CheckpointSaved { epoch, version, dir, manifest_sha256 })
        }),
        (epoch(), text(), text(), any::<bool>(), fault).prop_map(|(epoch, what, error, fatal, fault)| {
            LearnerToCoordinator::Failed(LearnerFailed { epoch, what, error, fatal, fault })
        }),
        (of(version()), of(any::<u64>()), any::<u64>()).prop_map(|(version, step, progress)| {
            LearnerToCoordinator::Beat(LearnerBeat { version, step: step.map(StepId), progress })
        }),
        text().prop_map(LearnerToCoordinator::Meeting),
    ]
}

pub(crate) fn coordinator_to_learner() -> impl Strategy<Value = CoordinatorToLearner> {
    let epoch = || any::<u64>().prop_map(Epoch);
    let from = prop_oneof![Just(LoadFrom::Base), text().prop_map(LoadFrom::Checkpoint)];
    let step =
        (epoch(), intent(), vec(group(), 0..3), any::<(bool, bool)>()).prop_map(|(epoch, intent, groups, (replay, hash))| {
            CoordinatorToLearner::Step(StepRequest { epoch, intent, groups, replay, hash })
        });
    prop_oneof![
        (epoch(), from, version()).prop_map(|(epoch, from, version)| CoordinatorToLearner::Load(Load { epoch, from, version })),
        step,
        (epoch(), version(), any::<u32>())
            .prop_map(|(epoch, version, slot)| { CoordinatorToLearner::Publish(PublishRequest { epoch, version, slot }) }),
        (epoch(), version(), text()).prop_map(|(epoch, version, cursor_json)| {
            CoordinatorToLearner::Checkpoint(CheckpointRequest { epoch, version, cursor_json })
        }),
        text().prop_map(CoordinatorToLearner::Drain),
        text().prop_map(CoordinatorToLearner::Meet),
    ]
}

pub(crate) fn between_ranks() -> impl Strategy<Value = BetweenRanks> {
    let holding = || (version(), any::<u64>()).prop_map(|(version, digest)| Holding { version, digest });
    let part = || any::<(u32, u32, u64)>().prop_map(|(rank, world, updates)| RankPart { rank, world, updates });
    let fault = prop_oneof![Just(Fault::Worker), Just(Fault::Compute), Just(Fault::System)];
    let step = (intent(), vec(group(), 0..3), any::<(u32, u32, u64, u64, u32, u32)>()).prop_map(
        |(intent, groups, (first, last, sequences, tokens, rank, world))| {
            BetweenRanks::Step(RankStep { intent, shards: (first, last), groups, sequences, tokens, rank, world })
        },
    );
    prop_oneof![
        any::<u64>().prop_map(BetweenRanks::Beat),
        of(holding()).prop_map(BetweenRanks::Holds),
        (holding(), any::<u64>()).prop_map(|(holding, updates)| BetweenRanks::State(RankState { holding, updates })),
        step,
        vec(any::<u32>().prop_map(f32::from_bits), 0..9).prop_map(|values| BetweenRanks::Values(Column(values))),
        vec(any::<u8>(), 0..9).prop_map(BetweenRanks::Note),
        any::<u64>().prop_map(BetweenRanks::Here),
        holding().prop_map(BetweenRanks::Stepped),
        (text(), any::<bool>(), fault).prop_map(|(error, fatal, fault)| BetweenRanks::Failed(RankFailed { error, fatal, fault })),
        (text(), text(), any::<u64>()).prop_map(|(host, path, mark)| BetweenRanks::Memory(RankMemory { host, path, mark })),
        any::<bool>().prop_map(BetweenRanks::Opened),
        of(part()).prop_map(BetweenRanks::Keeps),
        part().prop_map(BetweenRanks::Keep),
        part().prop_map(BetweenRanks::HandIn),
    ]
}
