//! What the worker decides: which request is done, refused or answered from memory. No await, clock or engine.
//!
//! Invariants
//! - **D1** one job at a time; a request that comes during a job is refused, unless it asks for that very job.
//! - **D2** a step starts only from the version its intent names. The step just done is answered again from memory: the
//!   coordinator may have died before it wrote the commit.
//! - **D3** requests of another epoch than the connection's are ignored; answers carry the epoch of their request and are
//!   not sent into another one.
//! - **D4** `Ready` names the version in the engine, so it waits for a running job; where followers find this lead is told at
//!   once. A job that loses that version with another rank ends with it, instead of an answer.
//! - **D5** the progress counter moves with every micro-batch, and with every beat while the job is within its patience
//!   ([`Patience`]); the coordinator replaces a learner whose counter stands still.
use crate::patience::Patience;
use cohort_protocol::messages::learner::{
    CheckpointRequest, CheckpointSaved, CoordinatorToLearner, Fault, LearnerBeat, LearnerFailed, LearnerToCoordinator, Load,
    Loaded, PublishRequest, Published, StepRequest, Stepped,
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
    /// What is to blame.
    pub fault: Fault,
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
    /// The same, by the loss of another rank. It is no failure of this one, which says, as after a start, that it holds nothing.
    LostWithRank,
    /// The engine is gone.
    EngineLost,
}

/// The worker's memory.
#[derive(Debug)]
pub struct LearnerState {
    patience: Patience,
    meeting: Option<String>,
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
    /// A fresh worker; where it leads, with the place where its followers find it.
    #[must_use]
    pub fn new(patience: Patience, meeting: Option<String>) -> Self {
        Self {
            patience,
            meeting,
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
            // For followers; this is the lead.
            Event::Received(CoordinatorToLearner::Meet(_)) => {}
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
        out.extend(self.meeting.iter().map(|place| Command::Send(LearnerToCoordinator::Meeting(place.clone()))));
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
        if let Outcome::Failed(Failure { aftermath: Aftermath::LostWithRank, .. }) = outcome {
            (self.held, self.last, self.greeting) = (None, None, false);
            out.push(Command::Send(LearnerToCoordinator::Ready(None)));
            out.extend(self.leaving.take().map(Command::Leave));
            return;
        }
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
                    Aftermath::WeightsLost | Aftermath::LostWithRank => (self.held, self.last) = (None, None),
                    Aftermath::EngineLost => out.push(Command::Fail(failure.error.clone())),
                }
                LearnerToCoordinator::Failed(LearnerFailed {
                    epoch,
                    what,
                    error: failure.error,
                    fatal: failure.fatal,
                    fault: failure.fault,
                })
            }
            (other, request) => {
                let error = format!("the job of {request:?} ended as {other:?}");
                LearnerToCoordinator::Failed(LearnerFailed { epoch, what, error, fatal: true, fault: Fault::Worker })
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
    out.push(Command::Send(LearnerToCoordinator::Failed(LearnerFailed { epoch, what, error, fatal, fault: Fault::Worker })));
}

#[cfg(test)]
mod tests;
