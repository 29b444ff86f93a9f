//! Round trips of arbitrary messages: the same bits come back, NaNs and all, from every table.
#![expect(clippy::unwrap_used, reason = "outside of `#[test]` functions the lint does not see that this is a test")]
use cohort_protocol::codec::Column;
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::handshake::{Handshake, Hello, Refused, Welcome};
use cohort_protocol::messages::keepers::{
    AppendLog, AppendOutcome, Appended, AskVote, AskerToKeeper, Ballot, KeeperStore, KeeperToAsker, Leadership, LogBody,
    LogEntry, LogPlace, VoteOutcome, Voted,
};
use cohort_protocol::messages::learner::{
    CheckpointRequest, CheckpointSaved, CoordinatorToLearner, Fault, LearnerBeat, LearnerFailed, LearnerToCoordinator, Load,
    LoadFrom, Loaded, PublishRequest, Published, StepRequest, Stepped,
};
use cohort_protocol::messages::node::ChunkName;
use cohort_protocol::messages::ranks::{BetweenRanks, Holding, RankFailed, RankMemory, RankPart, RankState, RankStep};
use cohort_protocol::messages::reward::{
    CoordinatorToReward, RewardBeat, RewardToCoordinator, SampleToScore, ScoreReply, ScoreRequest,
};
use cohort_protocol::messages::rollout::{
    CancelLease, ContinuedLease, CoordinatorToRollout, LeaseFailed, PartialGroup, Ready, RolloutBeat, RolloutToCoordinator,
    SwapFailed, WeightsReady,
};
use cohort_protocol::messages::seeking::{KeeperToNode, NodeToKeeper, WhoLeads};
use cohort_protocol::messages::weights::{Chunk, ChunkDelta, ChunkSince, FetcherToHolder, Gone, HolderToFetcher};
use cohort_protocol::score::SampleOutcome;
use cohort_protocol::{
    AttemptId, Epoch, FinishReason, Frame, GroupId, GroupLease, GroupPayload, LeasePurpose, PolicyVersion, Role, RunId, SampleIx,
    SampledItem, SamplingParams, Score, ScoreOutcome, ScoredTrajectory, StepCommit, StepId, StepIntent, ToolCall, ToolResult,
    Trajectory, TrajectoryBatch, Turn, TurnEnd, TurnPart, TurnRole, VersionSpan, WorkerId,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

/// Any text, with the characters that tempt a codec.
fn text() -> impl Strategy<Value = String> {
    "[a-z{}\"\\\\\u{0}\u{7f}é語\u{1f375}]{0,12}"
}

fn f64s() -> impl Strategy<Value = f64> {
    any::<u64>().prop_map(f64::from_bits)
}

fn f32s() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits)
}

fn version() -> impl Strategy<Value = PolicyVersion> {
    any::<u64>().prop_map(PolicyVersion)
}

fn purpose() -> impl Strategy<Value = LeasePurpose> {
    prop_oneof![Just(LeasePurpose::Train), any::<(u64, bool)>().prop_map(|(step, greedy)| LeasePurpose::Eval { step, greedy })]
}

/// What every answer is fenced by.
fn fence() -> impl Strategy<Value = (Epoch, LeasePurpose, GroupId, AttemptId)> {
    (any::<(u64, u64, u32)>(), purpose()).prop_map(|((e, g, a), purpose)| (Epoch(e), purpose, GroupId(g), AttemptId(a)))
}

fn turn() -> impl Strategy<Value = Turn> {
    let role = prop_oneof![Just(TurnRole::System), Just(TurnRole::User), Just(TurnRole::Assistant), Just(TurnRole::Tool)];
    let call = (text(), text()).prop_map(|(name, arguments)| ToolCall { name, arguments });
    let result = (text(), text(), any::<bool>()).prop_map(|(name, content, is_error)| ToolResult { name, content, is_error });
    (role, text(), any::<(u32, u32)>(), of(f64s()), vec(call, 0..2), vec(result, 0..2)).prop_map(
        |(role, content, (start, len), reward, tool_calls, tool_results)| Turn {
            role,
            content,
            start,
            len,
            reward,
            tool_calls,
            tool_results,
        },
    )
}

fn span() -> impl Strategy<Value = VersionSpan> {
    let all = any::<(u32, u32, u64, bool)>();
    all.prop_map(|(start, len, v, exact)| VersionSpan { start, len, version: PolicyVersion(v), exact })
}

fn part() -> impl Strategy<Value = TurnPart> {
    let ended = of(prop_oneof![Just(TurnEnd::Stop), Just(TurnEnd::Length), Just(TurnEnd::Context)]);
    let columns = (vec(any::<u32>(), 0..20), vec(f32s(), 0..20), vec(f32s(), 0..20));
    (any::<(u16, u32, u32)>(), columns, vec(span(), 0..3), ended).prop_map(
        |((sample, turn, start), (ids, logp, sampled), spans, ended)| TurnPart {
            sample: SampleIx(sample),
            turn,
            start,
            token_ids: Column(ids),
            logp: Column(logp),
            logp_sampled: Column(sampled),
            spans,
            ended,
        },
    )
}

fn trajectory() -> impl Strategy<Value = Trajectory> {
    let finish = prop_oneof![
        Just(FinishReason::Stop),
        Just(FinishReason::Length),
        Just(FinishReason::Context),
        Just(FinishReason::MaxTurns)
    ];
    let columns = (vec(any::<u32>(), 0..20), vec(any::<u8>(), 0..20), vec(f32s(), 0..20), vec(f32s(), 0..20));
    (any::<(u64, u16, u64)>(), columns, vec(span(), 0..3), f32s(), vec(turn(), 0..3), finish, text()).prop_map(
        |((group, sample, generate_us), (ids, mask, logp, sampled), spans, temperature, turns, finish, context_json)| {
            Trajectory {
                group: GroupId(group),
                sample: SampleIx(sample),
                token_ids: Column(ids),
                mask,
                logp: Column(logp),
                logp_sampled: Column(sampled),
                spans,
                temperature,
                turns,
                finish,
                generate_us,
                context_json,
            }
        },
    )
}

fn score() -> impl Strategy<Value = Score> {
    (f64s(), vec((text(), f64s()), 0..3), text()).prop_map(|(score, breakdown, metadata_json)| Score {
        score,
        breakdown,
        metadata_json,
    })
}

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

fn rollout_to_coordinator() -> impl Strategy<Value = RolloutToCoordinator> {
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

fn lease() -> impl Strategy<Value = GroupLease> {
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

fn coordinator_to_rollout() -> impl Strategy<Value = CoordinatorToRollout> {
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

fn reward_to_coordinator() -> impl Strategy<Value = RewardToCoordinator> {
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

fn coordinator_to_reward() -> impl Strategy<Value = CoordinatorToReward> {
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

fn learner_to_coordinator() -> impl Strategy<Value = LearnerToCoordinator> {
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

fn group() -> impl Strategy<Value = GroupPayload> {
    let scored = (trajectory(), score()).prop_map(|(trajectory, score)| ScoredTrajectory { trajectory, score });
    (any::<u64>(), vec(scored, 0..3), vec(f64s(), 0..3)).prop_map(|(g, samples, advantages)| GroupPayload {
        group: GroupId(g),
        samples,
        advantages,
    })
}

fn intent() -> impl Strategy<Value = StepIntent> {
    (any::<(u64, u64)>(), vec(any::<u64>(), 0..4), vec(text(), 0..4)).prop_map(|((step, base), groups, digests)| {
        let groups = groups.into_iter().map(GroupId).collect();
        StepIntent { step: StepId(step), base: PolicyVersion(base), groups, digests }
    })
}

fn coordinator_to_learner() -> impl Strategy<Value = CoordinatorToLearner> {
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

fn ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), any::<u64>(), any::<bool>())
        .prop_map(|(term, keeper, granted)| Ballot { leadership: Leadership { term, keeper }, granted })
}

fn log_place() -> impl Strategy<Value = LogPlace> {
    (any::<u64>(), any::<u64>(), any::<u64>())
        .prop_map(|(term, keeper, index)| LogPlace { leadership: Leadership { term, keeper }, index })
}

fn log_entry() -> impl Strategy<Value = LogEntry> {
    let body = prop_oneof![
        Just(LogBody::Blank),
        vec(vec(any::<u64>(), 0..4), 0..3).prop_map(LogBody::Keepers),
        vec(any::<u8>(), 0..40).prop_map(LogBody::Command),
    ];
    (log_place(), body).prop_map(|(place, body)| LogEntry { place, body })
}

fn keeper_store() -> impl Strategy<Value = KeeperStore> {
    (any::<u64>(), any::<u64>()).prop_map(|(keeper, store)| KeeperStore { keeper, store })
}

fn asker_to_keeper() -> impl Strategy<Value = AskerToKeeper> {
    let append = (any::<u64>(), ballot(), of(log_place()), of(log_place()), vec(log_entry(), 0..4));
    prop_oneof![
        keeper_store().prop_map(AskerToKeeper::Store),
        append.prop_map(|(id, ballot, before, committed, entries)| {
            AskerToKeeper::Append(AppendLog { id, ballot, before, committed, entries })
        }),
        (any::<u64>(), ballot(), of(log_place())).prop_map(|(id, ballot, last)| AskerToKeeper::Vote(AskVote {
            id,
            ballot,
            last
        })),
        vec(any::<u16>(), 0..4).prop_map(AskerToKeeper::Revoked),
    ]
}

fn keeper_to_asker() -> impl Strategy<Value = KeeperToAsker> {
    let appended = prop_oneof![
        Just(AppendOutcome::Done),
        of(log_place()).prop_map(AppendOutcome::Part),
        Just(AppendOutcome::Conflict),
        ballot().prop_map(AppendOutcome::Outvoted),
        text().prop_map(AppendOutcome::Failed),
    ];
    let voted = prop_oneof![
        (ballot(), any::<bool>(), of(log_place())).prop_map(|(ballot, granted, last)| VoteOutcome::Cast {
            ballot,
            granted,
            last
        }),
        text().prop_map(VoteOutcome::Failed),
    ];
    prop_oneof![
        keeper_store().prop_map(KeeperToAsker::Store),
        (any::<u64>(), appended).prop_map(|(id, outcome)| KeeperToAsker::Appended(Appended { id, outcome })),
        (any::<u64>(), voted).prop_map(|(id, outcome)| KeeperToAsker::Voted(Voted { id, outcome })),
    ]
}

fn chunk_name() -> impl Strategy<Value = ChunkName> {
    (version(), any::<u32>()).prop_map(|(version, chunk)| ChunkName { version, chunk })
}

fn fetcher_to_holder() -> impl Strategy<Value = FetcherToHolder> {
    prop_oneof![
        chunk_name().prop_map(FetcherToHolder::Give),
        (chunk_name(), version(), any::<[u8; 32]>()).prop_map(|(name, base, base_hash)| FetcherToHolder::GiveSince(ChunkSince {
            name,
            base,
            base_hash
        })),
    ]
}

fn holder_to_fetcher() -> impl Strategy<Value = HolderToFetcher> {
    let bytes = || vec(any::<u8>(), 0..40);
    prop_oneof![
        (chunk_name(), bytes()).prop_map(|(name, bytes)| HolderToFetcher::Chunk(Chunk { name, bytes })),
        (chunk_name(), text()).prop_map(|(name, why)| HolderToFetcher::Gone(Gone { name, why })),
        (chunk_name(), version(), bytes()).prop_map(|(name, base, bytes)| HolderToFetcher::Delta(ChunkDelta {
            name,
            base,
            bytes
        })),
    ]
}

fn between_ranks() -> impl Strategy<Value = BetweenRanks> {
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

fn keeper_to_node() -> impl Strategy<Value = KeeperToNode> {
    let leads = (any::<u64>(), any::<u64>(), of(any::<u64>()), of(text()));
    leads.prop_map(|(id, term, keeper, listens)| KeeperToNode::Leads(WhoLeads { id, term, keeper, listens }))
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
        let frame = Frame { direction, tag, body };
        canonical::<Handshake>(&frame);
        canonical::<RolloutToCoordinator>(&frame);
        canonical::<CoordinatorToRollout>(&frame);
        canonical::<RewardToCoordinator>(&frame);
        canonical::<CoordinatorToReward>(&frame);
        canonical::<LearnerToCoordinator>(&frame);
        canonical::<CoordinatorToLearner>(&frame);
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
        let frame = Frame { direction: 2, tag: 2, body };
        let error = RolloutToCoordinator::from_frame(&frame).unwrap_err().to_string();
        assert!(error.contains("LimitExceeded"), "{claimed} trajectories: {error}");
    }
}
