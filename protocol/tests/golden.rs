//! One example of every message against its committed bytes, so that no change of the wire goes unnoticed.
//!
//! `tests/golden/DIRECTION.hex` has a line per message: tag, name, the frame's bytes. A line that has to change means a new
//! protocol version; a new message is added with `COHORT_BLESS=1 cargo test -p cohort-protocol --test golden`.
#![expect(clippy::unwrap_used, reason = "outside of `#[test]` functions the lint does not see that this is a test")]
use cohort_protocol::codec::Column;
use cohort_protocol::frame::LEN_BYTES;
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::handshake::{Enrol, Enrolled, Handshake, Hello, Refused, Welcome};
use cohort_protocol::messages::keepers::{
    AppendLog, AppendOutcome, Appended, AskVote, AskerToKeeper, Ballot, KeeperStore, KeeperToAsker, Leadership, LogBody,
    LogEntry, LogPlace, VoteOutcome, Voted,
};
use cohort_protocol::messages::learner::{
    CheckpointRequest, CheckpointSaved, CoordinatorToLearner, Fault, LearnerBeat, LearnerFailed, LearnerToCoordinator, Load,
    LoadFrom, Loaded, PublishRequest, Published, StepRequest, Stepped,
};
use cohort_protocol::messages::node::{
    Certificate, CertificateRequest, ChildState, ChunkFailed, ChunkHashes, ChunkName, FetchChunk, HeadToNode, Manifest,
    NoWeights, NodeReady, NodeToHead, Replace, RunFacts, WantWeights,
};
use cohort_protocol::messages::ranks::{
    BetweenRanks, Holding, RankFabric, RankFailed, RankMemory, RankPart, RankState, RankStep,
};
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
    AttemptId, CodecError, Epoch, FinishReason, Frame, GroupId, GroupLease, GroupPayload, LeasePurpose, PolicyVersion, Role,
    RunId, SampleIx, SampledItem, SamplingParams, Score, ScoreOutcome, ScoredTrajectory, StepCommit, StepId, StepIntent,
    ToolCall, ToolResult, Trajectory, TrajectoryBatch, Turn, TurnEnd, TurnPart, TurnRole, VersionSpan, WorkerId,
};
use std::fmt::{Debug, Write};
use std::path::PathBuf;

fn purpose() -> LeasePurpose {
    LeasePurpose::Eval { step: 10, greedy: true }
}

fn turns() -> Vec<Turn> {
    let call = ToolCall { name: "lookup_order".into(), arguments: "{\"id\":4711}".into() };
    let result = ToolResult { name: "lookup_order".into(), content: "3 x tea".into(), is_error: false };
    vec![
        Turn::text(TurnRole::System, ""),
        Turn::text(TurnRole::User, "What does order 4711 come to? \u{1f375}"),
        Turn { start: 1, len: 2, reward: Some(0.25), tool_calls: vec![call], ..Turn::text(TurnRole::Assistant, "a") },
        Turn { start: 3, len: 1, tool_results: vec![result], ..Turn::text(TurnRole::Tool, "3 x tea") },
    ]
}

fn trajectory() -> Trajectory {
    Trajectory {
        group: GroupId(7),
        sample: SampleIx(2),
        token_ids: Column(vec![1, 49_151, 3, 4]),
        mask: vec![0, 1, 1, 0],
        logp: Column(vec![0.0, -0.5, -1.25, 0.0]),
        logp_sampled: Column(vec![0.0, -0.5, -1.0e-30, 0.0]),
        spans: vec![VersionSpan { start: 1, len: 2, version: PolicyVersion(3), exact: true }],
        temperature: 1.0,
        turns: turns(),
        finish: FinishReason::MaxTurns,
        generate_us: 1_234_567,
        context_json: "{\"order\":4711}".into(),
    }
}

fn score() -> Score {
    let breakdown = vec![("exact_match".into(), 1.0), ("length".into(), -0.5)];
    Score { score: 0.5, breakdown, metadata_json: "{}".into() }
}

fn intent() -> StepIntent {
    StepIntent { step: StepId(4), base: PolicyVersion(3), groups: vec![GroupId(7)], digests: vec!["ab12".into()] }
}

fn handshake() -> Vec<(&'static str, Handshake)> {
    let worker = WorkerId { role: Role::Reward, index: 3 };
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 2,
        run: RunId(0x0123_4567_89ab_cdef),
        worker,
        pid: 4242,
        incarnation: 1,
        numerics: "f32 avx512".into(),
    };
    let enrol = Enrol {
        protocol_min: 2,
        protocol_max: 3,
        run: RunId(7),
        secret: [9; 32],
        host: "gpu-2".into(),
        public_key: vec![4, 1, 2],
    };
    let enrolled = Enrolled { protocol: 3, node: WorkerId { role: Role::Node, index: 2 }, certificate: vec![0x30] };
    vec![
        ("Hello", Handshake::Hello(hello)),
        ("Welcome", Handshake::Welcome(Welcome { protocol: 1, epoch: Epoch(5) })),
        ("Refused", Handshake::Refused(Refused { reason: "another run".into() })),
        ("Enrol", Handshake::Enrol(enrol)),
        ("Enrolled", Handshake::Enrolled(enrolled)),
    ]
}

fn part() -> TurnPart {
    TurnPart {
        sample: SampleIx(2),
        turn: 1,
        start: 5,
        token_ids: Column(vec![49_151, 3]),
        logp: Column(vec![-0.5, -1.25]),
        logp_sampled: Column(vec![-0.5, -1.0e-30]),
        spans: vec![VersionSpan { start: 0, len: 2, version: PolicyVersion(3), exact: true }],
        ended: Some(TurnEnd::Length),
    }
}

fn rollout_to_coordinator() -> Vec<(&'static str, RolloutToCoordinator)> {
    let (epoch, group, attempt) = (Epoch(5), GroupId(7), AttemptId(2));
    let batch = TrajectoryBatch { epoch, purpose: LeasePurpose::Train, group, attempt, trajectories: vec![trajectory()] };
    let failed =
        LeaseFailed { epoch, purpose: purpose(), group, attempt, error: "prompt of 600 tokens".into(), retryable: false };
    vec![
        ("Ready", RolloutToCoordinator::Ready(Ready { version: Some(PolicyVersion(3)), capacity: 4 })),
        ("Trajectories", RolloutToCoordinator::Trajectories(batch)),
        ("LeaseFailed", RolloutToCoordinator::LeaseFailed(failed)),
        ("Beat", RolloutToCoordinator::Beat(RolloutBeat { tokens: 987_654_321, running: 2 })),
        (
            "SwapFailed",
            RolloutToCoordinator::SwapFailed(SwapFailed { version: PolicyVersion(3), error: "slot 1 is torn".into() }),
        ),
        (
            "Partial",
            RolloutToCoordinator::Partial(PartialGroup { epoch, purpose: purpose(), group, attempt, parts: vec![part()] }),
        ),
    ]
}

fn coordinator_to_rollout() -> Vec<(&'static str, CoordinatorToRollout)> {
    let lease = GroupLease {
        epoch: Epoch(5),
        purpose: purpose(),
        group: GroupId(7),
        attempt: AttemptId(2),
        version: PolicyVersion(3),
        follows: true,
        samples: 8,
        item: SampledItem { row: 99, json: "{\"prompt\":\"p\"}".into() },
        seed: u64::MAX,
        sampling: SamplingParams {
            temperature: 0.7,
            greedy: false,
            max_new_tokens: 64,
            top_k: 20,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.1,
            presence_penalty: 0.5,
            frequency_penalty: -0.25,
        },
    };
    let weights = WeightsReady { version: PolicyVersion(4), slot: 1, digest: 0xfeed_beef_dead_cafe };
    let cancel = CancelLease { purpose: LeasePurpose::Train, group: GroupId(7), attempt: AttemptId(2) };
    vec![
        ("Weights", CoordinatorToRollout::Weights(weights)),
        ("Lease", CoordinatorToRollout::Lease(lease.clone())),
        ("Cancel", CoordinatorToRollout::Cancel(cancel)),
        ("Drain", CoordinatorToRollout::Drain("done".into())),
        ("Continue", CoordinatorToRollout::Continue(ContinuedLease { lease, parts: vec![part()] })),
    ]
}

fn reward_to_coordinator() -> Vec<(&'static str, RewardToCoordinator)> {
    let failed = ScoreOutcome::Failed { error: "judge: no answer".into(), retryable: true };
    let outcomes = vec![
        SampleOutcome { sample: SampleIx(0), outcome: ScoreOutcome::Scored(score()) },
        SampleOutcome { sample: SampleIx(1), outcome: failed },
    ];
    let reply = ScoreReply {
        epoch: Epoch(5),
        purpose: LeasePurpose::Train,
        group: GroupId(7),
        attempt: AttemptId(1),
        outcomes,
        score_us: 77,
    };
    let beat = RewardBeat { progress: 12, running: 1, breakers: vec![("judge".into(), "half-open".into())] };
    vec![
        ("Ready", RewardToCoordinator::Ready(4)),
        ("Scored", RewardToCoordinator::Scored(reply)),
        ("Beat", RewardToCoordinator::Beat(beat)),
    ]
}

fn coordinator_to_reward() -> Vec<(&'static str, CoordinatorToReward)> {
    let request = ScoreRequest {
        epoch: Epoch(5),
        purpose: purpose(),
        group: GroupId(7),
        attempt: AttemptId(1),
        item_json: "{\"answer\":\"12\"}".into(),
        seed: 42,
        samples: vec![SampleToScore { sample: SampleIx(0), turns: turns(), context_json: "{}".into() }],
    };
    vec![("Score", CoordinatorToReward::Score(request)), ("Drain", CoordinatorToReward::Drain("done".into()))]
}

fn learner_to_coordinator() -> Vec<(&'static str, LearnerToCoordinator)> {
    let (epoch, version) = (Epoch(5), PolicyVersion(4));
    let commit = StepCommit {
        step: StepId(4),
        version,
        weights_sha256: "00ff".into(),
        weights_digest: 0xfeed_beef_dead_cafe,
        metrics: vec![("grad_norm".into(), 0.125), ("kl".into(), 0.0)],
    };
    let saved = CheckpointSaved { epoch, version, dir: "checkpoints/step-4".into(), manifest_sha256: "aa".into() };
    let failed = LearnerFailed { epoch, what: "step 12".into(), error: "loss is NaN".into(), fatal: true, fault: Fault::Compute };
    let beat = LearnerBeat { version: Some(version), step: None, progress: 31 };
    vec![
        ("Ready", LearnerToCoordinator::Ready(None)),
        ("Loaded", LearnerToCoordinator::Loaded(Loaded { epoch, version, digest: 9, sha256: "bb".into() })),
        ("Stepped", LearnerToCoordinator::Stepped(Stepped { epoch, commit })),
        ("Published", LearnerToCoordinator::Published(Published { epoch, version, slot: 1, digest: 9, publish_us: 5 })),
        ("CheckpointSaved", LearnerToCoordinator::CheckpointSaved(saved)),
        ("Failed", LearnerToCoordinator::Failed(failed)),
        ("Beat", LearnerToCoordinator::Beat(beat)),
        ("Meeting", LearnerToCoordinator::Meeting("127.0.0.1:4433".into())),
    ]
}

fn coordinator_to_learner() -> Vec<(&'static str, CoordinatorToLearner)> {
    let (epoch, version) = (Epoch(5), PolicyVersion(3));
    let scored = ScoredTrajectory { trajectory: trajectory(), score: score() };
    let group = GroupPayload { group: GroupId(7), samples: vec![scored], advantages: vec![-1.5] };
    let step = StepRequest { epoch, intent: intent(), groups: vec![group], replay: false, hash: true };
    let load = Load { epoch, from: LoadFrom::Checkpoint("checkpoints/step-3".into()), version };
    let checkpoint = CheckpointRequest { epoch, version, cursor_json: "{\"row\":3}".into() };
    vec![
        ("Load", CoordinatorToLearner::Load(load)),
        ("Step", CoordinatorToLearner::Step(step)),
        ("Publish", CoordinatorToLearner::Publish(PublishRequest { epoch, version, slot: 1 })),
        ("Checkpoint", CoordinatorToLearner::Checkpoint(checkpoint)),
        ("Drain", CoordinatorToLearner::Drain("done".into())),
        ("Meet", CoordinatorToLearner::Meet("127.0.0.1:4433".into())),
    ]
}

fn between_ranks() -> Vec<(&'static str, BetweenRanks)> {
    let holding = Holding { version: PolicyVersion(3), digest: 9 };
    let scored = ScoredTrajectory { trajectory: trajectory(), score: score() };
    let group = GroupPayload { group: GroupId(7), samples: vec![scored], advantages: vec![-1.5] };
    let step = RankStep { intent: intent(), shards: (2, 4), groups: vec![group], sequences: 8, tokens: 320, rank: 1, world: 2 };
    let failed = RankFailed { error: "loss is NaN".into(), fatal: true, fault: Fault::Compute };
    let memory = RankMemory { host: "0f3a pid:[1]".into(), path: "/proc/7/fd/9".into(), mark: 3 };
    let fabric = RankFabric { kind: "nccl".into(), invitation: vec![7, 0, 255], rank: 1, world: 4 };
    let part = RankPart { rank: 1, world: 4, updates: 3 };
    vec![
        ("Beat", BetweenRanks::Beat(31)),
        ("Holds", BetweenRanks::Holds(Some(holding))),
        ("State", BetweenRanks::State(RankState { holding, updates: 3 })),
        ("Step", BetweenRanks::Step(step)),
        ("Values", BetweenRanks::Values(Column(vec![0.0, -0.5, 1.0e-30]))),
        ("Note", BetweenRanks::Note(vec![1, 2, 255])),
        ("Here", BetweenRanks::Here(4)),
        ("Stepped", BetweenRanks::Stepped(holding)),
        ("Failed", BetweenRanks::Failed(failed)),
        ("Memory", BetweenRanks::Memory(memory)),
        ("Opened", BetweenRanks::Opened(true)),
        ("Fabric", BetweenRanks::Fabric(fabric)),
        ("Keeps", BetweenRanks::Keeps(Some(part))),
        ("Keep", BetweenRanks::Keep(part)),
        ("HandIn", BetweenRanks::HandIn(part)),
    ]
}

fn rollout_4() -> WorkerId {
    WorkerId { role: Role::Rollout, index: 4 }
}

fn chunk_name() -> ChunkName {
    ChunkName { version: PolicyVersion(3), chunk: 17 }
}

fn node_to_head() -> Vec<(&'static str, NodeToHead)> {
    let ready = NodeReady { offers: vec![(Role::Rollout, 4)], weights_port: 7402, held: Some(PolicyVersion(2)) };
    let child = ChildState {
        name: "rollout-4".into(),
        pid: Some(77),
        phase: "running".into(),
        restarts: 1,
        last_exit: Some("signal 9".into()),
    };
    let from = WorkerId { role: Role::Node, index: 2 };
    vec![
        ("Ready", NodeToHead::Ready(ready)),
        ("Certify", NodeToHead::Certify(CertificateRequest { worker: rollout_4(), public_key: vec![4, 1, 2] })),
        ("Children", NodeToHead::Children(vec![child])),
        ("Beat", NodeToHead::Beat(135)),
        ("WantWeights", NodeToHead::WantWeights(WantWeights { version: PolicyVersion(3), slot: 1 })),
        ("Held", NodeToHead::Held(chunk_name())),
        ("ChunkFailed", NodeToHead::ChunkFailed(ChunkFailed { name: chunk_name(), from, why: "gone".into() })),
        ("Leaving", NodeToHead::Leaving("SIGTERM".into())),
    ]
}

fn head_to_node() -> Vec<(&'static str, HeadToNode)> {
    let version = PolicyVersion(3);
    let manifest =
        Manifest { version, digest: 9, directory_bytes: 100, value_bytes: 4000, chunk_bytes: 4100, hashes: vec![7; 32] };
    let from = WorkerId { role: Role::Node, index: 2 };
    let facts = RunFacts { config: "[cluster]".into(), coordinator_port: 7401, weights_port: 7402, slots: 2 };
    vec![
        ("Run", HeadToNode::Run(facts)),
        ("Assign", HeadToNode::Assign(vec![rollout_4()])),
        ("Certificate", HeadToNode::Certificate(Certificate { worker: rollout_4(), der: vec![0x30] })),
        ("Replace", HeadToNode::Replace(Replace { worker: rollout_4(), pid: 77, why: "it hangs".into() })),
        ("Manifest", HeadToNode::Manifest(manifest)),
        ("Fetch", HeadToNode::Fetch(FetchChunk { name: chunk_name(), from, address: "10.0.0.2:7402".into() })),
        ("NoWeights", HeadToNode::NoWeights(NoWeights { version, why: "overwritten".into() })),
        ("Leave", HeadToNode::Leave("the run is over".into())),
        ("Revoked", HeadToNode::Revoked(vec![1, 7])),
        ("Hashes", HeadToNode::Hashes(ChunkHashes { version, first: 1, hashes: vec![8; 32] })),
    ]
}

fn ballot() -> Ballot {
    Ballot { leadership: Leadership { term: 3, keeper: 1 }, granted: true }
}

fn log_place(index: u64) -> LogPlace {
    LogPlace { leadership: Leadership { term: 2, keeper: 0 }, index }
}

fn asker_to_keeper() -> Vec<(&'static str, AskerToKeeper)> {
    let body = [LogBody::Blank, LogBody::Keepers(vec![vec![0, 1, 2]]), LogBody::Command(vec![1, 2, 255])];
    let entries = (8..).zip(body).map(|(index, body)| LogEntry { place: log_place(index), body }).collect();
    let append = AppendLog { id: 9, ballot: ballot(), before: Some(log_place(7)), committed: None, entries };
    let vote = AskVote { id: 10, ballot: Ballot { granted: false, ..ballot() }, last: Some(log_place(7)) };
    vec![
        ("Store", AskerToKeeper::Store(KeeperStore { keeper: 1, store: 0xfeed })),
        ("Append", AskerToKeeper::Append(append)),
        ("Vote", AskerToKeeper::Vote(vote)),
        ("Revoked", AskerToKeeper::Revoked(vec![1, 7])),
    ]
}

fn keeper_to_asker() -> Vec<(&'static str, KeeperToAsker)> {
    let appended = Appended { id: 9, outcome: AppendOutcome::Outvoted(ballot()) };
    let outcome = VoteOutcome::Cast { ballot: ballot(), granted: true, last: None };
    vec![
        ("Store", KeeperToAsker::Store(KeeperStore { keeper: 2, store: 1 })),
        ("Appended", KeeperToAsker::Appended(appended)),
        ("Voted", KeeperToAsker::Voted(Voted { id: 10, outcome })),
    ]
}

fn node_to_keeper() -> Vec<(&'static str, NodeToKeeper)> {
    vec![("WhoLeads", NodeToKeeper::WhoLeads(9))]
}

fn keeper_to_node() -> Vec<(&'static str, KeeperToNode)> {
    let leads = WhoLeads { id: 9, term: 3, keeper: Some(1), listens: Some("0.0.0.0:7400".into()) };
    vec![("Leads", KeeperToNode::Leads(leads))]
}

fn fetcher_to_holder() -> Vec<(&'static str, FetcherToHolder)> {
    let since = ChunkSince { name: chunk_name(), base: PolicyVersion(2), base_hash: [7; 32] };
    vec![("Give", FetcherToHolder::Give(chunk_name())), ("GiveSince", FetcherToHolder::GiveSince(since))]
}

fn holder_to_fetcher() -> Vec<(&'static str, HolderToFetcher)> {
    vec![
        ("Chunk", HolderToFetcher::Chunk(Chunk { name: chunk_name(), bytes: vec![1, 2, 3].into() })),
        ("Gone", HolderToFetcher::Gone(Gone { name: chunk_name(), why: "a newer version took its place".into() })),
        ("Delta", HolderToFetcher::Delta(ChunkDelta { name: chunk_name(), base: PolicyVersion(2), bytes: vec![0, 1, 2].into() })),
    ]
}

/// Every example encodes to its line and its line decodes to it; the file has a line for every tag.
fn check<M: WireMessage + PartialEq + Debug>(file: &str, tags: &[u8], removed: &[u8], examples: Vec<(&'static str, M)>) {
    let mut text = String::new();
    let mut seen = Vec::new();
    for (name, message) in &examples {
        let frame = message.to_frame().unwrap();
        writeln!(text, "{} {name} {}", frame.tag, hex(&frame.to_bytes())).unwrap();
        seen.push(frame.tag);
    }
    assert_eq!(seen, tags, "{file}: an example for every tag, in the table's order");
    assert!(removed.iter().all(|tag| !tags.contains(tag)), "{file}: a removed tag is used again");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("COHORT_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(committed, text, "{file}: the wire has changed");
    for (line, (name, message)) in committed.lines().zip(&examples) {
        let bytes = unhex(line.split(' ').nth(2).unwrap());
        let frame = Frame::from_payload(&bytes[LEN_BYTES..]).unwrap();
        assert_eq!(Frame::check_len(bytes[..LEN_BYTES].try_into().unwrap(), bytes.len()).unwrap(), bytes.len() - LEN_BYTES);
        assert_eq!(&M::from_frame(&frame).unwrap(), message, "{name}");
        damage::<M>(name, &frame);
    }
    for tag in (0..=u8::MAX).filter(|tag| !tags.contains(tag)) {
        let frame = Frame { direction: M::DIRECTION as u8, tag, body: Vec::new().into() };
        assert!(matches!(M::from_frame(&frame), Err(CodecError::UnknownTag { tag: t, .. }) if t == tag));
    }
}

/// A frame cut short, lengthened or sent the wrong way is refused; a frame with any bit flipped is refused or is another
/// message that encodes to just these bytes. Nothing panics.
fn damage<M: WireMessage + Debug>(name: &str, frame: &Frame) {
    for cut in 0..frame.body.len() {
        let short = Frame { body: frame.body.slice(..cut), ..frame.clone() };
        assert!(matches!(M::from_frame(&short), Err(CodecError::Malformed { .. })), "{name} cut at {cut}");
    }
    let long = Frame { body: [&frame.body[..], &[0]].concat().into(), ..frame.clone() };
    assert!(matches!(M::from_frame(&long), Err(CodecError::Trailing { left: 1, .. })), "{name} with a tail");
    for direction in (0..=u8::MAX).filter(|&d| d != frame.direction) {
        let astray = Frame { direction, ..frame.clone() };
        assert!(matches!(M::from_frame(&astray), Err(CodecError::WrongDirection { got, .. }) if got == direction));
    }
    for bit in 0..frame.body.len() * 8 {
        let mut body = frame.body.to_vec();
        body[bit / 8] ^= 1 << (bit % 8);
        let flipped = Frame { body: body.into(), ..frame.clone() };
        if let Ok(message) = M::from_frame(&flipped) {
            assert_eq!(message.to_frame().unwrap(), flipped, "{name}: two byte images of one message, bit {bit}");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

macro_rules! golden {
    ($($test:ident: $table:ty),+ $(,)?) => {
        $(mod $test {
            #[test]
            fn bytes_are_as_committed() {
                let file = concat!(stringify!($test), ".hex");
                super::check(file, <$table>::TAGS, <$table>::REMOVED_TAGS, super::$test());
            }
        })+
    };
}

golden!(
    handshake: super::Handshake,
    rollout_to_coordinator: super::RolloutToCoordinator,
    coordinator_to_rollout: super::CoordinatorToRollout,
    reward_to_coordinator: super::RewardToCoordinator,
    coordinator_to_reward: super::CoordinatorToReward,
    learner_to_coordinator: super::LearnerToCoordinator,
    coordinator_to_learner: super::CoordinatorToLearner,
    node_to_head: super::NodeToHead,
    head_to_node: super::HeadToNode,
    fetcher_to_holder: super::FetcherToHolder,
    holder_to_fetcher: super::HolderToFetcher,
    between_ranks: super::BetweenRanks,
    asker_to_keeper: super::AskerToKeeper,
    keeper_to_asker: super::KeeperToAsker,
    node_to_keeper: super::NodeToKeeper,
    keeper_to_node: super::KeeperToNode,
);
