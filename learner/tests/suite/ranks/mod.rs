//! Learner ranks as whole workers in one process, with a scripted coordinator: equal bits for any number of ranks, and for
//! every way in which one of them is lost.
mod fabrics;
mod lost;
mod parts;

use crate::loom::{Loom, OfLoom};
use crate::toy::{Toy, goal_request};
use cohort_actors::transport::inproc::{InprocAddress, InprocListener};
use cohort_actors::transport::{Deadlines, Dialer, Listener};
use cohort_actors::{AcceptTerms, PeerLink, Shutdown, accept_worker};
use cohort_engine::fabric::Fabrics;
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineHandle, EngineOptions, LocalRing};
use cohort_learner::config::{CorrectionConfig, TrainingConfig};
use cohort_learner::schedule::Decay;
use cohort_learner::{LearnerArgs, LearnerError, Ranks, Rendezvous, run_worker};
use cohort_model::ModelFiles;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::learner::{
    CheckpointRequest, CoordinatorToLearner, LearnerToCoordinator, Load, LoadFrom, StepRequest,
};
use cohort_protocol::{Epoch, PolicyVersion, Role, RunId, StepCommit, WorkerId, version};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const RUN: RunId = RunId(7);
const GROUPS: u64 = 6;

fn model() -> ModelFiles {
    ModelFiles::open("random://tiny?seed=3").unwrap()
}

fn config(shards: u32) -> TrainingConfig {
    TrainingConfig {
        steps: 10,
        groups_per_step: 6,
        group_size: 4,
        learning_rate: 0.01,
        schedule: Decay::Linear,
        micro_batch_tokens: 32,
        logical_shards: shards,
        ..TrainingConfig::default()
    }
}

/// Requests of a run that no rank was lost in.
fn requests(count: u64, training: &TrainingConfig) -> Vec<StepRequest> {
    let training = cohort_learner::Training::try_from(training).unwrap();
    let mut toy = Toy::new(model().spec, model().weights().unwrap());
    let step = |step| {
        let request = goal_request(&toy, step, GROUPS, 9);
        cohort_learner::step::run(&mut toy, &training, &request, None, &mut |_, _| {}).unwrap();
        request
    };
    (1..=count).map(step).collect()
}

#[derive(Debug)]
struct Place(InprocAddress);

impl Rendezvous for Place {
    fn listen(&self) -> Result<(Arc<dyn Listener>, String), String> {
        Ok((Arc::new(self.0.listen()), "here".into()))
    }
    fn dialer(&self, _: &str) -> Result<Arc<dyn Dialer>, String> {
        Ok(Arc::new(self.0.dialer()))
    }
}

type Link = PeerLink<LearnerToCoordinator, CoordinatorToLearner>;
type Make = fn() -> Box<dyn Backend>;

fn toy() -> Box<dyn Backend> {
    Box::new(Toy::new(model().spec, model().weights().unwrap()))
}

fn native() -> Box<dyn Backend> {
    Box::new(NativeEngine::new(model().spec, 1, 0).unwrap())
}

/// The ranks of a learner and the coordinator's end of their links.
struct Session {
    training: TrainingConfig,
    count: u16,
    coordinator: InprocAddress,
    listener: InprocListener,
    meeting: Arc<Place>,
    fabrics: Option<Arc<dyn Fabrics>>,
    lead: Option<Link>,
    workers: Vec<(u16, JoinHandle<Result<(), LearnerError>>)>,
    followers: Vec<Link>,
    _folder: tempfile::TempDir,
}

fn start(engine: EngineHandle, index: u16, session: &Session, run_dir: &Path) -> JoinHandle<Result<(), LearnerError>> {
    let hello = Hello {
        protocol_min: version::PROTOCOL_MIN,
        protocol_max: version::PROTOCOL,
        run: RUN,
        worker: WorkerId { role: Role::Learner, index },
        pid: 1,
        incarnation: 0,
        numerics: "any".into(),
    };
    let args = LearnerArgs {
        hello,
        engine,
        reference: None,
        ring: Arc::new(LocalRing::new(2)),
        training: session.training.clone(),
        model: model(),
        run_dir: run_dir.to_path_buf(),
        ranks: (session.count > 1).then(|| Ranks {
            count: session.count,
            rendezvous: session.meeting.clone(),
            fabrics: session.fabrics.clone(),
        }),
    };
    tokio::spawn(run_worker(args, Arc::new(session.coordinator.dialer()), Shutdown::new()))
}

impl Session {
    /// The lead alone so far, with the base model loaded.
    async fn new(count: u16, training: TrainingConfig, make: Make) -> Self {
        Self::on(None, count, training, make).await
    }

    /// As [`Self::new`], where the ranks have a fabric.
    async fn on(loom: Option<&Arc<Loom>>, count: u16, training: TrainingConfig, make: Make) -> Self {
        let coordinator = InprocAddress::new("coordinator", Deadlines::default());
        let folder = tempfile::tempdir().unwrap();
        let mut session = Self {
            training,
            count,
            listener: coordinator.listen(),
            coordinator,
            meeting: Arc::new(Place(InprocAddress::new("learner-0", Deadlines::default()))),
            fabrics: loom.map(|loom| -> Arc<dyn Fabrics> { Arc::new(OfLoom(loom.clone())) }),
            lead: None,
            workers: Vec::new(),
            followers: Vec::new(),
            _folder: folder,
        };
        session.join(0, engine(make)).await;
        session.load().await;
        session
    }

    /// As many ranks as there are to be.
    async fn whole(count: u16, training: TrainingConfig, make: Make) -> Self {
        let mut session = Self::new(count, training, make).await;
        for index in 1..count {
            session.join(index, engine(make)).await;
        }
        session
    }

    async fn join(&mut self, index: u16, engine: EngineHandle) {
        let worker = start(engine, index, self, self._folder.path());
        self.workers.push((index, worker));
        let terms = AcceptTerms {
            run: RUN,
            epoch: Epoch(1),
            numerics: "any".into(),
            corrects: false,
            deadline: Duration::from_secs(5),
            roles: AcceptTerms::FOLLOWERS,
        };
        let connection = timeout(Duration::from_secs(20), self.listener.accept()).await.unwrap().unwrap();
        let link: Link = accept_worker(connection, &terms, |_| Ok(())).await.unwrap().into_link();
        if index > 0 {
            link.sender().send(&CoordinatorToLearner::Meet("here".into())).await.unwrap();
            return self.followers.push(link);
        }
        self.lead = Some(link);
        if self.count > 1 {
            assert_eq!(self.answer().await, LearnerToCoordinator::Meeting("here".into()));
        }
        assert_eq!(self.answer().await, LearnerToCoordinator::Ready(None));
    }

    /// The task of a rank is gone from one moment to the next; its engine may go on for a while.
    fn kill(&mut self, index: u16) {
        let at = self.workers.iter().position(|(rank, _)| *rank == index).unwrap();
        self.workers.remove(at).1.abort();
    }

    /// The next message of the lead that is no beat.
    async fn answer(&self) -> LearnerToCoordinator {
        loop {
            match timeout(Duration::from_secs(60), self.lead.as_ref().unwrap().recv()).await.expect("in time").unwrap().0 {
                LearnerToCoordinator::Beat(_) => {}
                other => return other,
            }
        }
    }

    async fn load(&self) {
        self.load_from(LoadFrom::Base, 0).await;
    }

    async fn load_from(&self, from: LoadFrom, version: u64) {
        let load = Load { epoch: Epoch(1), from, version: PolicyVersion(version) };
        self.lead.as_ref().unwrap().sender().send(&CoordinatorToLearner::Load(load)).await.unwrap();
        assert!(matches!(self.answer().await, LearnerToCoordinator::Loaded(_)));
    }

    async fn ask(&self, request: &StepRequest) {
        let request = StepRequest { epoch: Epoch(1), hash: true, ..request.clone() };
        self.lead.as_ref().unwrap().sender().send_bulk(&CoordinatorToLearner::Step(request)).await.unwrap();
    }

    async fn step(&self, request: &StepRequest) -> StepCommit {
        self.ask(request).await;
        match self.answer().await {
            LearnerToCoordinator::Stepped(stepped) => bare(stepped.commit),
            other => panic!("{other:?}"),
        }
    }
}

impl Session {
    async fn ask_for_checkpoint(&self, version: u64) {
        let cursor_json = r#"{"row":5}"#.into();
        let request = CheckpointRequest { epoch: Epoch(1), version: PolicyVersion(version), cursor_json };
        self.lead.as_ref().unwrap().sender().send(&CoordinatorToLearner::Checkpoint(request)).await.unwrap();
    }

    /// Where it lies, and the SHA-256 of the list of its files' SHA-256.
    async fn checkpoint(&self, version: u64) -> (std::path::PathBuf, String) {
        self.ask_for_checkpoint(version).await;
        match self.answer().await {
            LearnerToCoordinator::CheckpointSaved(saved) => (self._folder.path().join(saved.dir), saved.manifest_sha256),
            other => panic!("{other:?}"),
        }
    }

    /// Sees, as a coordinator, that these steps are done from the version held, of which the first may have been asked for already. Gives how
    /// often the lead said that it holds nothing any more, and was given the base model.
    async fn drive(&self, held: usize, mut asked: bool, requests: &[StepRequest], want: &[StepCommit]) -> usize {
        let (mut done, mut losses) = (held, 0);
        while done < requests.len() {
            if !std::mem::take(&mut asked) {
                self.ask(&requests[done]).await;
            }
            match self.answer().await {
                LearnerToCoordinator::Stepped(stepped) => assert_eq!(bare(stepped.commit), want[done]),
                LearnerToCoordinator::Ready(None) => {
                    (done, losses) = (0, losses + 1);
                    self.load().await;
                    continue;
                }
                other => panic!("{other:?}"),
            }
            done += 1;
        }
        losses
    }
}

/// Without what says how it was computed.
fn bare(mut commit: StepCommit) -> StepCommit {
    commit.metrics.retain(|(name, _)| !name.starts_with("perf/"));
    commit
}

fn engine(make: Make) -> EngineHandle {
    EngineHandle::start(move || Ok(make()), EngineOptions::default()).unwrap()
}

/// Where each rank keeps a part of the optimizer's state.
fn in_parts(training: &TrainingConfig) -> TrainingConfig {
    TrainingConfig { shard_optimizer: true, ..training.clone() }
}

async fn commits(count: u16, training: &TrainingConfig, make: Make) -> Vec<StepCommit> {
    let session = Session::whole(count, training.clone(), make).await;
    let mut commits = Vec::new();
    for request in requests(3, training) {
        commits.push(session.step(&request).await);
    }
    commits
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_ranks_gives_the_same_bits_and_metrics() {
    let training = config(4);
    let alone = commits(1, &training, native).await;
    for count in [2, 4] {
        assert_eq!(commits(count, &training, native).await, alone, "{count} ranks");
    }
    for count in [2, 4] {
        assert_eq!(commits(count, &in_parts(&training), native).await, alone, "{count} ranks, the optimizer's state in parts");
    }
    assert_ne!(commits(1, &TrainingConfig { logical_shards: 1, ..training }, native).await, alone, "another tree");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_ranks_share_six_shards_over_several_inner_epochs() {
    let correction = CorrectionConfig::Tis { min: 0.0, max: 2.0 };
    let training = TrainingConfig { inner_epochs: 2, correction, ..config(6) };
    let alone = commits(1, &training, toy).await;
    assert_eq!(commits(3, &training, toy).await, alone);
    assert_eq!(commits(6, &training, toy).await, alone);
    assert_eq!(commits(3, &in_parts(&training), toy).await, alone);
    assert_eq!(commits(6, &in_parts(&training), toy).await, alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_comes_late_is_given_the_leads_state() {
    let training = config(2);
    let alone = commits(1, &training, native).await;
    let requests = requests(3, &training);
    let mut session = Session::whole(2, training, native).await;
    assert_eq!(session.step(&requests[0]).await, alone[0]);
    session.kill(1);
    session.join(1, engine(native)).await;
    assert_eq!(session.step(&requests[1]).await, alone[1], "with moments");
    assert_eq!(session.step(&requests[2]).await, alone[2], "what it holds now is the lead's to the bit");
}
