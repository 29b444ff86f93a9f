//! A rollout worker against a coordinator's end of the link, over the in-process transport, with a stub for a model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use cohort_actors::transport::inproc::{InprocAddress, InprocListener};
use cohort_actors::{AcceptTerms, Deadlines, Listener, PeerLink, Shutdown, accept_worker};
use cohort_engine::stub::StubBackend;
use cohort_engine::{Backend, EngineHandle, EngineOptions, LocalRing, PackedBatch, PackedSequence, WeightRing};
use cohort_model::{ModelFiles, WeightSet};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::rollout::{CancelLease, CoordinatorToRollout, RolloutToCoordinator, WeightsReady};
use cohort_protocol::{
    AttemptId, Epoch, FinishReason, GroupId, GroupLease, LeasePurpose, PolicyVersion, Role, RunId, SampledItem, SamplingParams,
    Trajectory, TrajectoryBatch, TurnRole, WorkerId, version,
};
use cohort_rollout::environments::order_desk::world::Order;
use cohort_rollout::{AgentConfig, ChatFormat, Dataset, EnvironmentConfig, RolloutArgs, RolloutError, registry, run_worker};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

type Link = PeerLink<RolloutToCoordinator, CoordinatorToRollout>;

struct Bench {
    listener: InprocListener,
    worker: JoinHandle<Result<(), RolloutError>>,
    shutdown: Shutdown,
    ring: Arc<dyn WeightRing>,
    engine: EngineHandle,
    files: ModelFiles,
    weights: WeightSet,
}

impl Bench {
    /// A worker whose policy says these things in turn.
    fn start(says: &[&str], agent: &str, environment: EnvironmentConfig, capacity: u16) -> Self {
        let files = ModelFiles::open("stub://test").unwrap();
        let weights = files.weights().unwrap();
        let stub_responses = says.iter().map(|s| (*s).to_owned()).collect();
        let config = AgentConfig { r#type: agent.into(), stub_responses, ..AgentConfig::default() };
        let script = registry::stub_script(&config, &files).unwrap();
        let (spec, base) = (files.spec.clone(), weights.clone());
        let make = move || Ok(Box::new(StubBackend::new(spec, script, base)?) as Box<dyn Backend>);
        let engine = EngineHandle::start(make, EngineOptions::default()).unwrap();
        let ring: Arc<dyn WeightRing> = Arc::new(LocalRing::new(2));
        let address = InprocAddress::new("coordinator", Deadlines::default());
        let (listener, shutdown) = (address.listen(), Shutdown::new());
        let args = RolloutArgs {
            hello: Hello {
                protocol_min: version::PROTOCOL_MIN,
                protocol_max: version::PROTOCOL,
                run: RunId(1),
                worker: WorkerId { role: Role::Rollout, index: 0 },
                pid: 1,
                incarnation: 0,
                numerics: engine.numerics().to_owned(),
            },
            engine: engine.clone(),
            ring: ring.clone(),
            agent: registry::agent(&config, &files).unwrap(),
            environment: registry::environment(&environment).unwrap(),
            capacity,
        };
        let worker = tokio::spawn(run_worker(args, Arc::new(address.dialer()), shutdown.clone()));
        Self { listener, worker, shutdown, ring, engine, files, weights }
    }

    /// Welcomes the worker to an epoch, publishes the base as version 0 and waits until it holds it.
    async fn welcome(&self, epoch: u64) -> Link {
        let link = self.accept(epoch).await;
        heard(&link, |m| matches!(m, RolloutToCoordinator::Ready(_)).then_some(())).await;
        self.publish(&link, 0, 0).await;
        link
    }

    /// Welcomes the worker and hears nothing yet.
    async fn accept(&self, epoch: u64) -> Link {
        let numerics = self.engine.numerics().to_owned();
        let terms = AcceptTerms {
            run: RunId(1),
            epoch: Epoch(epoch),
            numerics,
            corrects: false,
            deadline: Duration::from_secs(5),
            roles: AcceptTerms::WORKERS,
        };
        let connection = self.listener.accept().await.unwrap();
        accept_worker(connection, &terms, |_| Ok(())).await.unwrap().into_link()
    }

    async fn publish(&self, link: &Link, slot: u32, version: u64) {
        let digest = self.ring.publish(slot, version, &self.weights).unwrap();
        let weights = WeightsReady { version: PolicyVersion(version), slot, digest };
        link.sender().send(&CoordinatorToRollout::Weights(weights)).await.unwrap();
        let ready = heard(link, |m| if let RolloutToCoordinator::Ready(ready) = m { Some(ready) } else { None }).await;
        assert_eq!(ready.version, Some(PolicyVersion(version)));
    }
}

/// The first message that `pick` takes; bulk is acknowledged, others (beats) are skipped.
async fn heard<T>(link: &Link, pick: impl Fn(RolloutToCoordinator) -> Option<T>) -> T {
    let found = async {
        loop {
            let (message, ack) = link.recv().await.unwrap();
            if let Some(ack) = ack {
                ack.accept();
            }
            if let Some(found) = pick(message) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("the message in time")
}

async fn batch(link: &Link) -> TrajectoryBatch {
    heard(link, |m| match m {
        RolloutToCoordinator::Trajectories(batch) => Some(batch),
        RolloutToCoordinator::LeaseFailed(failed) => panic!("{}", failed.error),
        _ => None,
    })
    .await
}

fn lease(epoch: u64, group: u64, attempt: u32, item: &SampledItem) -> GroupLease {
    GroupLease {
        epoch: Epoch(epoch),
        purpose: LeasePurpose::Train,
        group: GroupId(group),
        attempt: AttemptId(attempt),
        version: PolicyVersion(0),
        follows: false,
        samples: 3,
        item: item.clone(),
        seed: 7,
        sampling: SamplingParams { greedy: true, ..SamplingParams::plain(1.0, 40) },
    }
}

async fn give(link: &Link, lease: &GroupLease) {
    link.sender().send(&CoordinatorToRollout::Lease(lease.clone())).await.unwrap();
}

/// R2: the template's text around exactly what was sampled, and log-probs that the engine gives again.
async fn check_exact(bench: &Bench, trajectory: &Trajectory) {
    trajectory.validate().unwrap();
    let format = ChatFormat::new(&bench.files).unwrap();
    let whole = format.prompt(&trajectory.turns).unwrap();
    assert!(whole.starts_with(&trajectory.token_ids), "a dialogue in steps has the tokens of the whole");
    for turn in trajectory.turns.iter().filter(|turn| turn.role == TurnRole::Assistant) {
        let tokens = &trajectory.token_ids[turn.start as usize..(turn.start + turn.len) as usize];
        assert_eq!(format.read(tokens).unwrap().0, turn.content);
    }
    let targets: Vec<u32> = (0..trajectory.len() as u32).filter(|&i| trajectory.mask[i as usize] == 1).collect();
    let stored: Vec<f32> = targets.iter().map(|&i| trajectory.logp[i as usize]).collect();
    let sequence = PackedSequence { tokens: trajectory.token_ids.to_vec(), targets, temperature: 1.0, shared: 0 };
    let batch = PackedBatch { sequences: vec![sequence] };
    let again = bench.engine.with_backend(move |b| b.forward(&batch, false)).await.unwrap().unwrap();
    assert_eq!(again.logp, stored);
}

#[tokio::test]
async fn a_tool_agent_serves_the_order_desk() {
    let order = Order(4823);
    let calls = [format!("lookup({order})"), format!("price({})", order.item()), format!("That comes to ${}.", order.total())];
    let bench = Bench::start(&calls.each_ref().map(String::as_str), "tool", EnvironmentConfig::default(), 2);
    let link = bench.welcome(1).await;
    let item = SampledItem { row: 4823, json: format!("{{\"order\": \"{order}\"}}") };
    give(&link, &lease(1, 5, 1, &item)).await;
    let batch = batch(&link).await;
    assert_eq!((batch.group, batch.trajectories.len()), (GroupId(5), 3));
    for (i, trajectory) in batch.trajectories.iter().enumerate() {
        assert_eq!(usize::from(trajectory.sample.0), i);
        check_exact(&bench, trajectory).await;
        let roles: Vec<TurnRole> = trajectory.turns.iter().map(|t| t.role).collect();
        use TurnRole::{Assistant, Tool, User};
        assert_eq!(roles, [User, Assistant, Tool, Assistant, Tool, Assistant]);
        assert_eq!(trajectory.turns[1].tool_calls[0].name, "lookup");
        assert_eq!(trajectory.turns[2].content, order.record());
        let context: serde_json::Value = serde_json::from_str(&trajectory.context_json).unwrap();
        assert_eq!((&context["correct"], &context["format"]), (&1.into(), &1.into()));
        assert_eq!(trajectory.finish, FinishReason::Stop);
    }
}

#[tokio::test]
async fn a_scripted_user_is_answered_turn_by_turn() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"[{"id": "s", "user_responses": ["hi", "and then?", "thanks, bye"], "system_prompt": "Be kind."}]"#;
    std::fs::write(dir.path().join("s.json"), script).unwrap();
    let config = EnvironmentConfig {
        r#type: "scenarios".into(),
        path: Some("s.json".into()),
        heldout: Some(0),
        ..EnvironmentConfig::default()
    };
    let data: Arc<dyn Dataset> = registry::dataset(&config, dir.path(), 1).unwrap();
    let bench = Bench::start(&["Hello.", "Then this."], "chat", config, 2);
    let link = bench.welcome(1).await;
    give(&link, &lease(1, 0, 1, &data.train(GroupId(0)))).await;
    let trajectory = &batch(&link).await.trajectories[0];
    check_exact(&bench, trajectory).await;
    let said: Vec<&str> = trajectory.turns.iter().map(|t| t.content.as_str()).collect();
    assert_eq!(said, ["Be kind.", "hi", "Hello.", "and then?", "Then this.", "thanks, bye"]);
    assert!(trajectory.context_json.contains("\"status\":\"completed\""));
}

#[tokio::test]
async fn budgets_end_episodes_and_impossible_prompts_fail_for_good() {
    let prompts = EnvironmentConfig { r#type: "prompts".into(), ..EnvironmentConfig::default() };
    let bench = Bench::start(&["a long answer that does not fit the budget"], "chat", prompts, 2);
    let link = bench.welcome(1).await;
    let item = |prompt: &str| SampledItem { row: 3, json: format!("{{\"prompt\": \"{prompt}\"}}") };
    let mut short = lease(1, 0, 1, &item("hi"));
    short.sampling.max_new_tokens = 6;
    give(&link, &short).await;
    let trajectory = batch(&link).await.trajectories.remove(0);
    assert_eq!((trajectory.finish, trajectory.completion_len()), (FinishReason::Length, 6));
    assert_eq!(trajectory.turns.last().unwrap().content, "a long");

    let context = bench.files.spec.max_context;
    give(&link, &lease(1, 1, 1, &item(&"x".repeat(context)))).await;
    let failed = heard(&link, |m| if let RolloutToCoordinator::LeaseFailed(f) = m { Some(f) } else { None }).await;
    assert!(!failed.retryable && failed.error.contains("row 3") && failed.error.contains("shorten"), "{}", failed.error);
    give(&link, &lease(1, 2, 1, &SampledItem { row: 9, json: "{\"question\": 1}".into() })).await;
    let failed = heard(&link, |m| if let RolloutToCoordinator::LeaseFailed(f) = m { Some(f) } else { None }).await;
    assert!(!failed.retryable && failed.error.starts_with("row 9"), "{}", failed.error);
}

#[tokio::test]
async fn leases_survive_a_lost_connection_and_not_a_new_epoch() {
    let desk = || Bench::start(&["That comes to $3."], "tool", EnvironmentConfig::default(), 2);
    let item = SampledItem { row: 1, json: "{\"order\": \"0001\"}".into() };
    // The batch that was dropped with its connection comes again over the next one, bit for bit.
    let bench = desk();
    let link = bench.welcome(1).await;
    give(&link, &lease(1, 0, 1, &item)).await;
    let (first, withheld) = loop {
        if let (RolloutToCoordinator::Trajectories(batch), Some(ack)) = link.recv().await.unwrap() {
            break (batch, ack);
        }
    };
    link.close("test");
    drop((link, withheld));
    let link = bench.accept(1).await;
    let again = batch(&link).await;
    assert_eq!(first, again);
    drop(link);
    // In a new epoch the worker serves the same group as a new lease, again with the same tokens.
    let link = bench.welcome(2).await;
    give(&link, &lease(2, 0, 1, &item)).await;
    let fresh = batch(&link).await;
    assert_eq!(fresh.epoch, Epoch(2));
    let columns = |b: &TrajectoryBatch| b.trajectories.iter().map(|t| (t.token_ids.clone(), t.logp.clone())).collect::<Vec<_>>();
    assert_eq!(columns(&fresh), columns(&first));
    // Cancelling what is not there is nothing; draining ends the worker.
    let cancel = CancelLease { purpose: LeasePurpose::Train, group: GroupId(0), attempt: AttemptId(1) };
    link.sender().send(&CoordinatorToRollout::Cancel(cancel)).await.unwrap();
    link.sender().send(&CoordinatorToRollout::Drain("done".into())).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), bench.worker).await.expect("it leaves").unwrap().unwrap();
    assert!(!bench.shutdown.is_triggered());
}

#[tokio::test]
async fn wrong_versions_are_refused_and_a_shutdown_ends_it() {
    let bench = Bench::start(&["x"], "chat", EnvironmentConfig::default(), 1);
    let link = bench.welcome(1).await;
    let mut wrong = lease(1, 0, 1, &SampledItem { row: 1, json: "{\"order\": \"0001\"}".into() });
    wrong.version = PolicyVersion(4);
    give(&link, &wrong).await;
    let failed = heard(&link, |m| if let RolloutToCoordinator::LeaseFailed(f) = m { Some(f) } else { None }).await;
    assert!(failed.retryable && failed.error.contains("version 4"), "{}", failed.error);
    bench.publish(&link, 1, 4).await;
    give(&link, &wrong).await;
    assert_eq!(batch(&link).await.trajectories[0].spans[0].version, PolicyVersion(4));
    bench.shutdown.trigger("test");
    tokio::time::timeout(Duration::from_secs(10), bench.worker).await.expect("it leaves").unwrap().unwrap();
    let _ = registry::dataset(&EnvironmentConfig::default(), Path::new("."), 1).unwrap();
}
