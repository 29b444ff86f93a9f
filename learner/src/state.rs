//! What the worker decides: which request is done, refused or answered from memory. No await, clock or engine.
//!
//! Invariants
//! - **D1** one job at a time; a request that comes during a job is refused, unless it asks for that very job.
//! - **D2** a step starts only from the version its intent names. The step just done is answered again from memory: the
//!   coordinator may have died before it wrote the commit.
//! - **D3** requests of another epoch than the connection's are ignored; answers carry the epoch of their request and are
//!   not sent into another one.
//! - **D4** `Ready` names the version in the engine, so it waits for a running job.
//! - **D5** the progress counter moves with every micro-batch, and with every beat while the job is within its patience
//!   ([`Patience`]); the coordinator replaces a learner whose counter stands still.
use crate::patience::Patience;
use cohort_protocol::messages::learner::{
    CheckpointRequest, CheckpointSaved, CoordinatorToLearner, LearnerBeat, LearnerFailed, LearnerToCoordinator, Load, Loaded,
    PublishRequest, Published, StepRequest, Stepped,
};
use cohort_protocol::{Epoch, PolicyVersion, StepCommit, StepId, StepIntent};

/// What happens to the worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A connection stands, with this incarnation of the coordinator.
    Connected(Epoch),
    /// The coordinator asks for something.
    Received(CoordinatorToLearner),
    /// The running job has ended.
    Finished(Outcome),
    /// A second has passed; micro-batches done since the start.
    Beat(u64),
}

/// What the worker does about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Tell the coordinator.
    Send(LearnerToCoordinator),
    /// Do this; [`Event::Finished`] follows.
    Start(Job),
    /// Leave in good order.
    Leave(String),
    /// Leave with an error: the engine is gone.
    Fail(String),
}

/// Work for the engine or the disk.
#[derive(Debug, Clone, PartialEq)]
pub enum Job {
    /// Take state.
    Load(Load),
    /// Do a step.
    Step(StepRequest),
    /// The SHA-256 that a commit in memory lacks.
    Hash(StepCommit),
    /// Write a slot.
    Publish(PublishRequest),
    /// Save.
    Checkpoint(CheckpointRequest),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// State is in the engine.
    Loaded {
        /// Its version.
        version: PolicyVersion,
        /// Its digest.
        digest: u64,
        /// Its SHA-256.
        sha256: String,
    },
    /// A step is done, or its hash was added.
    Stepped(StepCommit),
    /// A slot is written.
    Published {
        /// Digest of what is in it.
        digest: u64,
        /// Microseconds.
        publish_us: u64,
    },
    /// A checkpoint stands.
    Saved {
        /// Relative to the run directory.
        dir: String,
        /// SHA-256 of its manifest.
        manifest_sha256: String,
    },
    /// It failed.
    Failed(Failure),
}

/// A failed job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Place, value and remedy.
    pub error: String,
    /// Whether asking again would fail again.
    pub fatal: bool,
    /// What is left of the state.
    pub aftermath: Aftermath,
}

/// What a failed job leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aftermath {
    /// Everything as before.
    Intact,
    /// Weights that are no version: they must be loaded again.
    WeightsLost,
    /// The engine is gone.
    EngineLost,
}

/// The worker's memory.
#[derive(Debug)]
pub struct LearnerState {
    patience: Patience,
    progress: u64,
    micro_batches: u64,
    epoch: Option<Epoch>,
    held: Option<PolicyVersion>,
    running: Option<Running>,
    last: Option<(StepIntent, StepCommit)>,
    greeting: bool,
    leaving: Option<String>,
}

#[derive(Debug)]
struct Running {
    what: String,
    request: Request,
    /// Beats since the last sign of progress.
    still: u64,
}

/// What an answer needs to know of its request.
#[derive(Debug, PartialEq)]
enum Request {
    Load(Epoch),
    Step(Epoch, StepIntent),
    Publish(PublishRequest),
    Checkpoint(Epoch, PolicyVersion),
}

impl Request {
    fn epoch(&self) -> Epoch {
        match self {
            Self::Load(epoch) | Self::Step(epoch, _) | Self::Checkpoint(epoch, _) => *epoch,
            Self::Publish(request) => request.epoch,
        }
    }
}

impl LearnerState {
    /// A fresh worker.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            progress: 0,
            micro_batches: 0,
            epoch: None,
            held: None,
            running: None,
            last: None,
            greeting: false,
            leaving: None,
        }
    }

    /// The version in the engine.
    #[must_use]
    pub fn held(&self) -> Option<PolicyVersion> {
        self.held
    }

    /// Decides.
    pub fn on_event(&mut self, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Connected(epoch) => self.on_connected(epoch, out),
            Event::Received(CoordinatorToLearner::Load(load)) => self.on_load(load, out),
            Event::Received(CoordinatorToLearner::Step(request)) => self.on_step(request, out),
            Event::Received(CoordinatorToLearner::Publish(request)) => self.on_publish(request, out),
            Event::Received(CoordinatorToLearner::Checkpoint(request)) => self.on_checkpoint(request, out),
            Event::Received(CoordinatorToLearner::Drain(reason)) => self.on_drain(reason, out),
            Event::Finished(outcome) => self.on_finished(outcome, out),
            Event::Beat(micro_batches) => self.on_beat(micro_batches, out),
        }
    }

    fn on_beat(&mut self, micro_batches: u64, out: &mut Vec<Command>) {
        let mut step = None;
        if let Some(running) = &mut self.running {
            let patience = match &running.request {
                Request::Load(_) | Request::Checkpoint(..) => self.patience.state,
                Request::Publish(_) => self.patience.publish,
                Request::Step(_, intent) => {
                    step = Some(intent.step);
                    self.patience.micro_batch
                }
            };
            running.still = if micro_batches == self.micro_batches { running.still + 1 } else { 0 };
            if running.still <= patience {
                self.progress += 1;
            }
        }
        self.micro_batches = micro_batches;
        let beat = LearnerBeat { version: self.held, step, progress: self.progress };
        out.push(Command::Send(LearnerToCoordinator::Beat(beat)));
    }

    fn on_connected(&mut self, epoch: Epoch, out: &mut Vec<Command>) {
        self.epoch = Some(epoch);
        self.greeting = self.running.is_some();
        if !self.greeting {
            out.push(Command::Send(LearnerToCoordinator::Ready(self.held)));
        }
    }

    fn on_load(&mut self, load: Load, out: &mut Vec<Command>) {
        let (request, what) = (Request::Load(load.epoch), format!("load version {}", load.version));
        if self.admit(&request, &what, out) {
            // Neither the old weights nor what is known of them survives a load that fails half-way.
            (self.held, self.last) = (None, None);
            self.start(request, what, Job::Load(load), out);
        }
    }

    fn on_step(&mut self, step: StepRequest, out: &mut Vec<Command>) {
        let (request, what) = (Request::Step(step.epoch, step.intent.clone()), format!("step {}", step.intent.step));
        if !self.admit(&request, &what, out) {
            return;
        }
        if let Some((_, commit)) = self.last.as_ref().filter(|(intent, _)| *intent == step.intent) {
            let commit = commit.clone();
            if step.hash && commit.weights_sha256.is_empty() {
                self.start(request, what, Job::Hash(commit), out);
            } else {
                out.push(Command::Send(LearnerToCoordinator::Stepped(Stepped { epoch: step.epoch, commit })));
            }
        } else if self.needs(step.intent.base, step.epoch, &what, out) {
            if step.intent.step != StepId(step.intent.base.0 + 1) {
                let error = format!("the intent of step {} starts from version {}", step.intent.step, step.intent.base);
                return refuse(step.epoch, what, error, true, out);
            }
            self.start(request, what, Job::Step(step), out);
        }
    }

    fn on_publish(&mut self, publish: PublishRequest, out: &mut Vec<Command>) {
        let (request, what) = (Request::Publish(publish.clone()), format!("publish version {}", publish.version));
        if self.admit(&request, &what, out) && self.needs(publish.version, publish.epoch, &what, out) {
            self.start(request, what, Job::Publish(publish), out);
        }
    }

    fn on_checkpoint(&mut self, save: CheckpointRequest, out: &mut Vec<Command>) {
        let (request, what) = (Request::Checkpoint(save.epoch, save.version), format!("checkpoint of version {}", save.version));
        if self.admit(&request, &what, out) && self.needs(save.version, save.epoch, &what, out) {
            self.start(request, what, Job::Checkpoint(save), out);
        }
    }

    fn on_drain(&mut self, reason: String, out: &mut Vec<Command>) {
        // A checkpoint on its way is finished; what a step computes is not lost by leaving it.
        match &self.running {
            Some(Running { request: Request::Checkpoint(..), .. }) => self.leaving = Some(reason),
            _ => out.push(Command::Leave(reason)),
        }
    }

    fn on_finished(&mut self, outcome: Outcome, out: &mut Vec<Command>) {
        let Some(Running { what, request, .. }) = self.running.take() else { return };
        let epoch = request.epoch();
        let answer = match (outcome, request) {
            (Outcome::Loaded { version, digest, sha256 }, _) => {
                self.held = Some(version);
                LearnerToCoordinator::Loaded(Loaded { epoch, version, digest, sha256 })
            }
            (Outcome::Stepped(commit), Request::Step(_, intent)) => {
                self.held = Some(commit.version);
                self.last = Some((intent, commit.clone()));
                LearnerToCoordinator::Stepped(Stepped { epoch, commit })
            }
            (Outcome::Published { digest, publish_us }, Request::Publish(PublishRequest { version, slot, .. })) => {
                LearnerToCoordinator::Published(Published { epoch, version, slot, digest, publish_us })
            }
            (Outcome::Saved { dir, manifest_sha256 }, Request::Checkpoint(_, version)) => {
                LearnerToCoordinator::CheckpointSaved(CheckpointSaved { epoch, version, dir, manifest_sha256 })
            }
            (Outcome::Failed(failure), _) => {
                match failure.aftermath {
                    Aftermath::Intact => {}
                    Aftermath::WeightsLost => (self.held, self.last) = (None, None),
                    Aftermath::EngineLost => out.push(Command::Fail(failure.error.clone())),
                }
                LearnerToCoordinator::Failed(LearnerFailed { epoch, what, error: failure.error, fatal: failure.fatal })
            }
            (other, request) => {
                let error = format!("the job of {request:?} ended as {other:?}");
                LearnerToCoordinator::Failed(LearnerFailed { epoch, what, error, fatal: true })
            }
        };
        if std::mem::take(&mut self.greeting) {
            out.push(Command::Send(LearnerToCoordinator::Ready(self.held)));
        }
        if self.epoch == Some(epoch) {
            // Before a `Fail`, so that the coordinator learns why.
            out.insert(0, Command::Send(answer));
        }
        if let Some(reason) = self.leaving.take() {
            out.push(Command::Leave(reason));
        }
    }

    /// D1 and D3: whether a request is looked at.
    fn admit(&self, request: &Request, what: &str, out: &mut Vec<Command>) -> bool {
        if self.epoch != Some(request.epoch()) {
            return false;
        }
        match &self.running {
            None => true,
            Some(running) if running.request == *request => false,
            Some(running) => {
                refuse(request.epoch(), what.to_owned(), format!("busy with {}; ask again after it", running.what), false, out);
                false
            }
        }
    }

    /// D2: whether the engine holds what a request is about.
    fn needs(&self, version: PolicyVersion, epoch: Epoch, what: &str, out: &mut Vec<Command>) -> bool {
        if self.held == Some(version) {
            return true;
        }
        let held = self.held.map_or("nothing".to_owned(), |v| format!("version {v}"));
        refuse(epoch, what.to_owned(), format!("it needs version {version}, this learner holds {held}; load first"), false, out);
        false
    }

    fn start(&mut self, request: Request, what: String, job: Job, out: &mut Vec<Command>) {
        self.running = Some(Running { what, request, still: 0 });
        out.push(Command::Start(job));
    }
}

fn refuse(epoch: Epoch, what: String, error: String, fatal: bool, out: &mut Vec<Command>) {
    out.push(Command::Send(LearnerToCoordinator::Failed(LearnerFailed { epoch, what, error, fatal })));
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::messages::learner::LoadFrom;
    use proptest::prelude::*;

    const PATIENCE: Patience = Patience { state: 5, micro_batch: 3, publish: 2 };

    fn step(epoch: u64, n: u64) -> StepRequest {
        let intent = StepIntent { step: StepId(n), base: PolicyVersion(n - 1), groups: Vec::new(), digests: Vec::new() };
        StepRequest { epoch: Epoch(epoch), intent, groups: Vec::new(), replay: false, hash: false }
    }

    fn commit(n: u64) -> StepCommit {
        let (step, version) = (StepId(n), PolicyVersion(n));
        StepCommit { step, version, weights_sha256: String::new(), weights_digest: n, metrics: Vec::new() }
    }

    fn loaded(version: u64) -> Outcome {
        Outcome::Loaded { version: PolicyVersion(version), digest: version, sha256: String::new() }
    }

    fn after(state: &mut LearnerState, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        state.on_event(event, &mut out);
        out
    }

    fn ask(state: &mut LearnerState, request: CoordinatorToLearner) -> Vec<Command> {
        after(state, Event::Received(request))
    }

    /// Connected in epoch 1 and holding version 0.
    fn ready() -> LearnerState {
        let mut state = LearnerState::new(PATIENCE);
        assert_eq!(after(&mut state, Event::Connected(Epoch(1))), [Command::Send(LearnerToCoordinator::Ready(None))]);
        let load = Load { epoch: Epoch(1), from: LoadFrom::Base, version: PolicyVersion(0) };
        assert!(matches!(ask(&mut state, CoordinatorToLearner::Load(load))[..], [Command::Start(Job::Load(_))]));
        after(&mut state, Event::Finished(loaded(0)));
        assert_eq!(state.held(), Some(PolicyVersion(0)));
        state
    }

    #[test]
    fn the_same_step_again_is_answered_from_memory() {
        let mut state = ready();
        assert!(matches!(ask(&mut state, CoordinatorToLearner::Step(step(1, 1)))[..], [Command::Start(Job::Step(_))]));
        assert_eq!(ask(&mut state, CoordinatorToLearner::Step(step(1, 1))), [], "it is being done");
        after(&mut state, Event::Finished(Outcome::Stepped(commit(1))));
        let again = ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
        assert!(matches!(&again[..], [Command::Send(LearnerToCoordinator::Stepped(s))] if s.commit == commit(1)));
        let hashed = StepRequest { hash: true, ..step(1, 1) };
        assert!(matches!(ask(&mut state, CoordinatorToLearner::Step(hashed))[..], [Command::Start(Job::Hash(_))]));
        // Other groups for the step just done are another matter.
        let mut state = ready();
        ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
        after(&mut state, Event::Finished(Outcome::Stepped(commit(1))));
        let mut other = step(1, 1);
        other.intent.digests.push("x".into());
        assert!(matches!(
            &ask(&mut state, CoordinatorToLearner::Step(other))[..],
            [Command::Send(LearnerToCoordinator::Failed(_))]
        ));
    }

    #[test]
    fn answers_do_not_cross_epochs_and_ready_waits() {
        let mut state = ready();
        ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
        assert_eq!(after(&mut state, Event::Connected(Epoch(2))), []);
        assert_eq!(ask(&mut state, CoordinatorToLearner::Step(step(1, 1))), [], "a request of the old epoch");
        let out = after(&mut state, Event::Finished(Outcome::Stepped(commit(1))));
        assert_eq!(out, [Command::Send(LearnerToCoordinator::Ready(Some(PolicyVersion(1))))]);
    }

    #[test]
    fn lost_weights_are_not_stepped_on() {
        let mut state = ready();
        ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
        let failure = Failure { error: "NaN".into(), fatal: true, aftermath: Aftermath::WeightsLost };
        let out = after(&mut state, Event::Finished(Outcome::Failed(failure)));
        assert!(matches!(&out[..], [Command::Send(LearnerToCoordinator::Failed(f))] if f.fatal && f.what == "step 1"));
        assert_eq!(state.held(), None);
        let out = ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
        assert!(matches!(&out[..], [Command::Send(LearnerToCoordinator::Failed(f))] if f.error.contains("load first")));
    }

    #[test]
    fn a_checkpoint_on_its_way_is_finished_before_leaving() {
        let mut state = ready();
        let save = CheckpointRequest { epoch: Epoch(1), version: PolicyVersion(0), cursor_json: "{}".into() };
        ask(&mut state, CoordinatorToLearner::Checkpoint(save));
        assert_eq!(ask(&mut state, CoordinatorToLearner::Drain("done".into())), []);
        let saved = Outcome::Saved { dir: "d".into(), manifest_sha256: "m".into() };
        let out = after(&mut state, Event::Finished(saved));
        assert!(matches!(&out[..], [Command::Send(LearnerToCoordinator::CheckpointSaved(_)), Command::Leave(_)]));
        assert!(matches!(ask(&mut ready(), CoordinatorToLearner::Drain("done".into()))[..], [Command::Leave(_)]));
    }

    #[test]
    fn progress_goes_on_within_a_jobs_patience_and_stops_after_it() {
        let mut state = ready();
        let beat = |state: &mut LearnerState, micro_batches| match &after(state, Event::Beat(micro_batches))[..] {
            [Command::Send(LearnerToCoordinator::Beat(beat))] => beat.progress,
            other => panic!("{other:?}"),
        };
        let idle = beat(&mut state, 0);
        assert_eq!(beat(&mut state, 0), idle, "nothing is asked of it");
        ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
        let counts: Vec<u64> = [0, 0, 0, 0, 0].map(|n| beat(&mut state, n) - idle).to_vec();
        assert_eq!(counts, [1, 2, 3, 3, 3], "a micro-batch that takes longer than it may");
        assert_eq!([1, 1, 1, 1, 1].map(|n| beat(&mut state, n) - idle), [4, 5, 6, 7, 7], "another one came after all");
        after(&mut state, Event::Finished(Outcome::Stepped(commit(1))));
        let save = CheckpointRequest { epoch: Epoch(1), version: PolicyVersion(1), cursor_json: "{}".into() };
        ask(&mut state, CoordinatorToLearner::Checkpoint(save));
        let moved: Vec<u64> = (0..8).map(|_| beat(&mut state, 1) - idle).collect();
        assert_eq!(moved, [8, 9, 10, 11, 12, 12, 12, 12], "a checkpoint has patience of its own");
    }

    #[test]
    fn a_dead_engine_ends_the_worker_after_it_was_said() {
        let mut state = ready();
        ask(&mut state, CoordinatorToLearner::Step(step(1, 1)));
        let failure = Failure { error: "gone".into(), fatal: false, aftermath: Aftermath::EngineLost };
        let out = after(&mut state, Event::Finished(Outcome::Failed(failure)));
        assert!(matches!(&out[..], [Command::Send(LearnerToCoordinator::Failed(_)), Command::Fail(_)]));
    }

    fn events() -> impl Strategy<Value = Event> {
        let (e, v) = (1u64..4, 0u64..4);
        prop_oneof![
            e.clone().prop_map(|e| Event::Connected(Epoch(e))),
            (e.clone(), v.clone()).prop_map(|(e, v)| {
                let (epoch, version) = (Epoch(e), PolicyVersion(v));
                Event::Received(CoordinatorToLearner::Load(Load { epoch, from: LoadFrom::Base, version }))
            }),
            (e.clone(), 1u64..5).prop_map(|(e, n)| Event::Received(CoordinatorToLearner::Step(step(e, n)))),
            (e, v).prop_map(|(e, v)| {
                let publish = PublishRequest { epoch: Epoch(e), version: PolicyVersion(v), slot: 0 };
                Event::Received(CoordinatorToLearner::Publish(publish))
            }),
            Just(Event::Beat(3)),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: one job at a time, each step from the version held, each answer in its epoch.
        #[test]
        fn one_job_at_a_time(events in proptest::collection::vec((events(), any::<bool>()), 1..60)) {
            let (mut state, mut running, mut epoch) = (LearnerState::new(PATIENCE), None::<Job>, None);
            for (event, finish) in events {
                if let Event::Connected(e) = event { epoch = Some(e); }
                let held = state.held();
                let mut out = after(&mut state, event);
                if finish && let Some(job) = running.take() {
                    out.extend(after(&mut state, Event::Finished(match job {
                        Job::Load(load) => loaded(load.version.0),
                        Job::Step(request) => Outcome::Stepped(commit(request.intent.step.0)),
                        Job::Hash(commit) => Outcome::Stepped(commit),
                        Job::Publish(_) => Outcome::Published { digest: 0, publish_us: 1 },
                        Job::Checkpoint(_) => Outcome::Saved { dir: String::new(), manifest_sha256: String::new() },
                    })));
                }
                for command in out {
                    match command {
                        Command::Start(job) => {
                            prop_assert!(running.is_none(), "a second job beside {:?}", running);
                            if let Job::Step(request) = &job { prop_assert_eq!(held, Some(request.intent.base)); }
                            running = Some(job);
                        }
                        Command::Send(LearnerToCoordinator::Stepped(s)) => prop_assert_eq!(Some(s.epoch), epoch),
                        Command::Send(LearnerToCoordinator::Failed(f)) => prop_assert_eq!(Some(f.epoch), epoch),
                        Command::Send(LearnerToCoordinator::Ready(v)) => {
                            prop_assert!(running.is_none());
                            prop_assert_eq!(v, state.held());
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}
