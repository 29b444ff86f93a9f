//! The worker's session with a scripted coordinator, over the in-process transport, on the toy and on the native engine.
use crate::toy::{Toy, goal_request};
use cohort_actors::transport::inproc::{InprocAddress, InprocListener};
use cohort_actors::transport::{Deadlines, Listener as _};
use cohort_actors::{AcceptTerms, PeerLink, Shutdown, accept_worker};
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineHandle, EngineOptions, LocalRing, PackedBatch, PackedSequence, WeightRing};
use cohort_learner::checkpoint;
use cohort_learner::config::{LossConfig, TrainingConfig};
use cohort_learner::schedule::Decay;
use cohort_learner::{LearnerArgs, LearnerError, run_worker};
use cohort_model::{ModelFiles, WeightSet};
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::learner::{
    CheckpointRequest, CoordinatorToLearner, LearnerFailed, LearnerToCoordinator, Load, LoadFrom, PublishRequest, StepRequest,
};
use cohort_protocol::{Epoch, PolicyVersion, Role, RunId, StepCommit, StepId, WorkerId, version};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const RUN: RunId = RunId(7);

fn model() -> ModelFiles {
    ModelFiles::open("random://tiny?seed=3").unwrap()
}

fn toy() -> Toy {
    let model = model();
    Toy::new(model.spec.clone(), model.weights().unwrap())
}

fn config() -> TrainingConfig {
    TrainingConfig {
        steps: 10,
        groups_per_step: 2,
        group_size: 4,
        learning_rate: 0.01,
        schedule: Decay::Linear,
        micro_batch_tokens: 32,
        ..TrainingConfig::default()
    }
}

/// A learner under test and the coordinator's end of its link.
struct Session {
    listener: InprocListener,
    link: PeerLink<LearnerToCoordinator, CoordinatorToLearner>,
    epoch: Epoch,
    ring: Arc<LocalRing>,
    worker: JoinHandle<Result<(), LearnerError>>,
    shutdown: Shutdown,
}

fn args(engine: EngineHandle, ring: Arc<LocalRing>, training: TrainingConfig, run_dir: &Path) -> LearnerArgs {
    let hello = Hello {
        protocol_min: version::PROTOCOL_MIN,
        protocol_max: version::PROTOCOL,
        run: RUN,
        worker: WorkerId { role: Role::Learner, index: 0 },
        pid: 1,
        incarnation: 0,
        numerics: "any".into(),
    };
    LearnerArgs { hello, engine, reference: None, ring, training, model: model(), run_dir: run_dir.to_path_buf(), ranks: None }
}

fn engine(backend: impl FnOnce() -> Box<dyn Backend> + Send + 'static) -> EngineHandle {
    EngineHandle::start(move || Ok(backend()), EngineOptions::default()).unwrap()
}

async fn admit(listener: &InprocListener, epoch: Epoch) -> PeerLink<LearnerToCoordinator, CoordinatorToLearner> {
    let terms = AcceptTerms {
        run: RUN,
        epoch,
        numerics: "any".into(),
        corrects: false,
        deadline: Duration::from_secs(5),
        roles: AcceptTerms::WORKERS,
    };
    let connection = timeout(Duration::from_secs(20), listener.accept()).await.unwrap().unwrap();
    accept_worker(connection, &terms, |_| Ok(())).await.unwrap().into_link()
}

impl Session {
    async fn start(engine: EngineHandle, training: TrainingConfig, run_dir: &Path) -> Self {
        let (ring, shutdown) = (Arc::new(LocalRing::new(2)), Shutdown::new());
        let address = InprocAddress::new("coordinator", Deadlines::default());
        let listener = address.listen();
        let args = args(engine, ring.clone(), training, run_dir);
        let worker = tokio::spawn(run_worker(args, Arc::new(address.dialer()), shutdown.clone()));
        let epoch = Epoch(1);
        let link = admit(&listener, epoch).await;
        Self { listener, link, epoch, ring, worker, shutdown }
    }

    /// The coordinator dies and comes back as another incarnation.
    async fn restart_coordinator(&mut self) {
        self.link.close("the coordinator restarts");
        self.epoch = Epoch(self.epoch.0 + 1);
        self.link = admit(&self.listener, self.epoch).await;
    }

    /// The next message that is no beat.
    async fn answer(&self) -> LearnerToCoordinator {
        loop {
            match timeout(Duration::from_secs(30), self.link.recv()).await.expect("an answer in time").unwrap().0 {
                LearnerToCoordinator::Beat(_) => {}
                other => return other,
            }
        }
    }

    async fn ask(&self, request: CoordinatorToLearner) -> LearnerToCoordinator {
        self.link.sender().send(&request).await.unwrap();
        self.answer().await
    }

    async fn load(&self, from: LoadFrom, version: u64) -> (u64, String) {
        let version = PolicyVersion(version);
        match self.ask(CoordinatorToLearner::Load(Load { epoch: self.epoch, from, version })).await {
            LearnerToCoordinator::Loaded(loaded) => {
                assert_eq!((loaded.epoch, loaded.version), (self.epoch, version));
                (loaded.digest, loaded.sha256)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn send_step(&self, request: &StepRequest) {
        let request = StepRequest { epoch: self.epoch, hash: true, ..request.clone() };
        self.link.sender().send_bulk(&CoordinatorToLearner::Step(request)).await.unwrap();
    }

    async fn step(&self, request: &StepRequest) -> StepCommit {
        self.send_step(request).await;
        match self.answer().await {
            LearnerToCoordinator::Stepped(stepped) => {
                assert_eq!(stepped.epoch, self.epoch);
                stepped.commit
            }
            other => panic!("{other:?}"),
        }
    }

    async fn checkpoint(&self, version: u64) -> String {
        let (epoch, version) = (self.epoch, PolicyVersion(version));
        let request = CheckpointRequest { epoch, version, cursor_json: r#"{"row":5}"#.into() };
        match self.ask(CoordinatorToLearner::Checkpoint(request)).await {
            LearnerToCoordinator::CheckpointSaved(saved) => saved.dir,
            other => panic!("{other:?}"),
        }
    }

    async fn leave(self) {
        self.link.sender().send(&CoordinatorToLearner::Drain("done".into())).await.unwrap();
        timeout(Duration::from_secs(10), self.worker).await.unwrap().unwrap().unwrap();
    }
}

fn failed(answer: LearnerToCoordinator) -> LearnerFailed {
    match answer {
        LearnerToCoordinator::Failed(failed) => failed,
        other => panic!("{other:?}"),
    }
}

/// The steps of a run without a worker around them.
fn requests(count: u64) -> Vec<StepRequest> {
    let training = cohort_learner::Training::try_from(&config()).unwrap();
    let mut toy = toy();
    (1..=count)
        .map(|step| {
            let request = goal_request(&toy, step, 2, 9);
            cohort_learner::step::run(&mut toy, &training, &request, None, &mut |_, _| {}).unwrap();
            request
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_steps_publishes_saves_and_leaves() {
    let run = tempfile::tempdir().unwrap();
    let session = Session::start(engine(|| Box::new(toy())), config(), run.path()).await;
    assert_eq!(session.answer().await, LearnerToCoordinator::Ready(None));
    let (digest, sha256) = session.load(LoadFrom::Base, 0).await;
    assert_eq!(sha256, model().weights().unwrap().sha256());

    let commit = session.step(&requests(1)[0]).await;
    assert_eq!((commit.step, commit.version), (StepId(1), PolicyVersion(1)));
    assert_ne!((commit.weights_digest, &commit.weights_sha256), (digest, &sha256));
    let metric = |name: &str| commit.metrics.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(metric("sampling/sampling_logp_difference/max"), 0.0);
    assert!(metric("grad_norm") > 0.0);

    let publish = PublishRequest { epoch: session.epoch, version: PolicyVersion(1), slot: 1 };
    match session.ask(CoordinatorToLearner::Publish(publish.clone())).await {
        LearnerToCoordinator::Published(p) => {
            assert_eq!((p.version, p.slot, p.digest), (PolicyVersion(1), 1, commit.weights_digest))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(session.ring.fetch(1, 1).unwrap().sha256(), commit.weights_sha256);
    let answer = failed(session.ask(CoordinatorToLearner::Publish(PublishRequest { slot: 9, ..publish })).await);
    assert!(answer.error.contains("slot 9 of a ring of 2") && answer.what == "publish version 1", "{answer:?}");

    let dir = session.checkpoint(1).await;
    assert_eq!(dir, "checkpoints/step-1");
    assert_eq!(checkpoint::hash(&run.path().join(dir)).unwrap().weights, commit.weights_sha256);
    session.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_learner_replays_to_the_same_bits() {
    let run = tempfile::tempdir().unwrap();
    let requests = requests(3);
    let session = Session::start(engine(|| Box::new(toy())), config(), run.path()).await;
    session.answer().await;
    session.load(LoadFrom::Base, 0).await;
    session.step(&requests[0]).await;
    let dir = session.checkpoint(1).await;
    let straight = [session.step(&requests[1]).await, session.step(&requests[2]).await];
    session.leave().await;

    // Another process: the checkpoint, then the committed intents again.
    let session = Session::start(engine(|| Box::new(toy())), config(), run.path()).await;
    assert_eq!(session.answer().await, LearnerToCoordinator::Ready(None));
    session.load(LoadFrom::Checkpoint(dir.clone()), 1).await;
    let replayed = [session.step(&requests[1]).await, session.step(&requests[2]).await];
    assert_eq!(straight, replayed);

    // A damaged checkpoint is refused, and the learner then holds nothing.
    std::fs::write(run.path().join(&dir).join("cursor.json"), "{}").unwrap();
    let load = Load { epoch: session.epoch, from: LoadFrom::Checkpoint(dir), version: PolicyVersion(1) };
    let answer = failed(session.ask(CoordinatorToLearner::Load(load)).await);
    assert!(answer.error.contains("cursor.json") && !answer.fatal, "{answer:?}");
    session.send_step(&requests[1]).await;
    let answer = failed(session.answer().await);
    assert!(answer.error.contains("this learner holds nothing") && !answer.fatal, "{answer:?}");
    session.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_coordinator_goes_on_where_the_old_one_died() {
    let run = tempfile::tempdir().unwrap();
    let requests = requests(2);
    let mut session = Session::start(engine(|| Box::new(toy())), config(), run.path()).await;
    session.answer().await;
    session.load(LoadFrom::Base, 0).await;
    let first = session.step(&requests[0]).await;
    session.restart_coordinator().await;
    assert_eq!(session.answer().await, LearnerToCoordinator::Ready(Some(PolicyVersion(1))));
    // It had not written the commit, asks again, and gets it without a second update.
    assert_eq!(session.step(&requests[0]).await, first);
    let second = session.step(&requests[1]).await;
    assert_eq!(second.version, PolicyVersion(2));

    // Dies while a step is computed: `Ready` waits for it and names its version.
    let mut other = Session::start(engine(|| Box::new(toy())), config(), run.path()).await;
    other.answer().await;
    other.load(LoadFrom::Base, 0).await;
    other.send_step(&requests[0]).await;
    other.restart_coordinator().await;
    assert_eq!(other.answer().await, LearnerToCoordinator::Ready(Some(PolicyVersion(1))));
    assert_eq!(other.step(&requests[0]).await, first);
    assert_eq!(other.step(&requests[1]).await, second);
    other.leave().await;
    session.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let run = tempfile::tempdir().unwrap();
    let requests = requests(2);
    let session = Session::start(engine(|| Box::new(toy())), config(), run.path()).await;
    session.answer().await;
    session.load(LoadFrom::Base, 0).await;
    session.send_step(&requests[1]).await;
    let answer = failed(session.answer().await);
    assert_eq!(answer.what, "step 2");
    assert!(answer.error.contains("needs version 1, this learner holds version 0") && !answer.fatal, "{answer:?}");

    let mut broken = requests[0].clone();
    broken.groups[0].advantages[0] = f64::NAN;
    broken.intent.digests[0] = cohort_learner::aggregator::payload_digest(&broken.groups[0]).unwrap();
    session.send_step(&broken).await;
    let answer = failed(session.answer().await);
    assert!(answer.fatal && answer.error.contains("loss gradient is NaN at group 0, sample 0"), "{answer:?}");

    let alone = Session::start(engine(|| Box::new(toy())), config(), run.path()).await;
    alone.answer().await;
    alone.load(LoadFrom::Base, 0).await;
    assert_eq!(session.step(&requests[0]).await, alone.step(&requests[0]).await, "the refused steps left no trace");
    alone.leave().await;
    session.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_and_leaves_on_shutdown() {
    let run = tempfile::tempdir().unwrap();
    let session = Session::start(engine(|| Box::new(toy())), config(), run.path()).await;
    session.answer().await;
    let beat = async {
        loop {
            if let (LearnerToCoordinator::Beat(beat), _) = session.link.recv().await.unwrap() {
                return beat;
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(5), beat).await.unwrap().version, None);
    session.shutdown.trigger("SIGTERM");
    timeout(Duration::from_secs(5), session.worker).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_config_that_cannot_work_is_refused_before_connecting() {
    let run = tempfile::tempdir().unwrap();
    let dialer = Arc::new(InprocAddress::new("nobody", Deadlines::default()).dialer());
    let attempt = |training| {
        let args = args(engine(|| Box::new(toy())), Arc::new(LocalRing::new(1)), training, run.path());
        run_worker(args, dialer.clone(), Shutdown::new())
    };
    let error = attempt(TrainingConfig { group_size: 1, ..config() }).await.unwrap_err();
    assert!(error.to_string().starts_with("training.group_size = 1: "), "{error}");
    let loss = LossConfig::DrGrpo { clip_low: 0.2, clip_high: 0.2, beta: 0.1, max_completion_length: 8 };
    let error = attempt(TrainingConfig { loss, ..config() }).await.unwrap_err();
    assert!(error.to_string().contains("reference model"), "{error}");
}

fn native(threads: usize) -> Box<dyn Backend> {
    let model = model();
    let mut engine = NativeEngine::new(model.spec.clone(), threads, 1 << 24).unwrap();
    engine.import(&model.weights().unwrap()).unwrap();
    Box::new(engine)
}

/// The native engine's own log-probs into the groups, as a sampler of the same weights stores them.
fn stored_by(engine: &mut dyn Backend, mut request: StepRequest) -> StepRequest {
    for (group, digest) in request.groups.iter_mut().zip(&mut request.intent.digests) {
        for scored in &mut group.samples {
            let t = &mut scored.trajectory;
            let targets: Vec<u32> = (0..t.mask.len() as u32).filter(|&i| t.mask[i as usize] == 1).collect();
            let sequence =
                PackedSequence { tokens: t.token_ids.0.clone(), targets: targets.clone(), temperature: t.temperature, shared: 0 };
            let logp = engine.forward(&PackedBatch { sequences: vec![sequence] }, false).unwrap().logp;
            for (&at, logp) in targets.iter().zip(logp) {
                (t.logp.0[at as usize], t.logp_sampled.0[at as usize]) = (logp, logp);
            }
        }
        *digest = cohort_learner::aggregator::payload_digest(group).unwrap();
    }
    request
}

/// Trains on the native engine; the log-probs come from the weights that the ring shows to samplers.
async fn native_run(threads: usize, run: &Path) -> Vec<StepCommit> {
    let (session, mut sampler) = (Session::start(engine(move || native(threads)), config(), run).await, native(1));
    session.answer().await;
    session.load(LoadFrom::Base, 0).await;
    let mut commits = Vec::new();
    for step in 1..=3u64 {
        let request = stored_by(sampler.as_mut(), goal_request(&toy(), step, 2, 9));
        let commit = session.step(&request).await;
        let publish = PublishRequest { epoch: session.epoch, version: commit.version, slot: (step % 2) as u32 };
        session.ask(CoordinatorToLearner::Publish(publish)).await;
        let weights: WeightSet = session.ring.fetch((step % 2) as u32, step).unwrap();
        sampler.import(&weights).unwrap();
        commits.push(commit);
    }
    session.leave().await;
    commits
}

#[tokio::test(flavor = "multi_thread")]
async fn the_native_engine_is_exact_and_reproducible() {
    let run = tempfile::tempdir().unwrap();
    let commits = native_run(1, run.path()).await;
    for commit in &commits {
        let metric = |name: &str| commit.metrics.iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(metric("sampling/sampling_logp_difference/max"), 0.0, "step {}", commit.step);
        assert!(metric("exactness/tokens") > 10.0 && metric("grad_norm") > 0.0);
    }
    assert_eq!(native_run(2, run.path()).await, commits, "one and two threads");
}
