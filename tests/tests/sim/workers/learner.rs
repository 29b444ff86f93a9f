//! The learner: the real decisions, and weights whose digest is a hash of the base's and of what the step consumed.
use super::{Brain, Note};
use crate::chance::hash;
use crate::net::Message;
use crate::seen::Seen;
use crate::world::{Saved, World};
use cohort_learner::aggregator::payload_digest;
use cohort_learner::patience::Patience;
use cohort_learner::state::{Aftermath, Command, Event, Failure, Job, LearnerState, Outcome};
use cohort_protocol::messages::learner::{Fault, LoadFrom, StepRequest};
use cohort_protocol::{PolicyVersion, StepCommit};

/// Digest of the base weights.
pub(crate) fn base_digest() -> u64 {
    hash(&[b"base"])
}

/// What a step makes of weights.
pub(crate) fn stepped(base: u64, digests: &[String]) -> u64 {
    let mut parts: Vec<&[u8]> = digests.iter().map(String::as_bytes).collect();
    let base = base.to_le_bytes();
    parts.insert(0, &base);
    hash(&parts)
}

/// The learner's memory.
#[derive(Debug)]
pub(crate) struct LearnerBrain {
    state: LearnerState,
    /// Version and digest in its engine.
    engine: Option<(PolicyVersion, u64)>,
    job: Option<(u64, Job)>,
    jobs: u64,
}

impl LearnerBrain {
    pub(crate) fn new() -> Self {
        let patience = Patience { state: 5, micro_batch: 5, publish: 5 };
        Self { state: LearnerState::new(patience, None), engine: None, job: None, jobs: 0 }
    }
}

impl World {
    fn learner(&mut self, pid: u32) -> Option<&mut LearnerBrain> {
        match self.procs.get_mut(&pid).map(|p| &mut p.brain) {
            Some(Brain::Learner(brain)) => Some(brain),
            _ => None,
        }
    }

    pub(super) fn learner_mail(&mut self, pid: u32, note: Note) {
        let event = match note {
            Note::Connected(epoch) => Event::Connected(epoch),
            Note::Message(Message::ToLearner(message)) => Event::Received(message),
            Note::Done(number) => {
                if self.procs.get(&pid).is_some_and(|p| p.spinning) {
                    return;
                }
                let job = self.learner(pid).and_then(|b| b.job.take_if(|(n, _)| *n == number));
                let Some((_, job)) = job else { return };
                Event::Finished(self.finish(pid, job))
            }
            _ => return,
        };
        self.learner_event(pid, event);
    }

    pub(super) fn learner_beats(&mut self, pid: u32) {
        self.learner_event(pid, Event::Beat(0));
    }

    fn learner_event(&mut self, pid: u32, event: Event) {
        let mut commands = Vec::new();
        let Some(brain) = self.learner(pid) else { return };
        brain.state.on_event(event, &mut commands);
        for command in commands {
            match command {
                Command::Send(message) => self.say(pid, Message::FromLearner(message)),
                Command::Start(job) => self.start_job(pid, job),
                Command::Leave(reason) | Command::Fail(reason) => self.kill(pid, &reason),
            }
        }
    }

    fn start_job(&mut self, pid: u32, job: Job) {
        let took = match &job {
            Job::Load(_) => self.effort(pid, 100, 800),
            Job::Step(_) => self.effort(pid, 200, 1500),
            Job::Hash(_) => self.effort(pid, 10, 50),
            Job::Publish(publish) => {
                let slot = publish.slot;
                self.ring.begin_writing(slot);
                self.see(Seen::SlotWritten { slot });
                self.effort(pid, 10, 200)
            }
            Job::Checkpoint(_) => self.effort(pid, 50, 600),
        };
        let Some(brain) = self.learner(pid) else { return };
        brain.jobs += 1;
        let number = brain.jobs;
        brain.job = Some((number, job));
        self.later(took, pid, Note::Done(number));
    }

    fn finish(&mut self, pid: u32, job: Job) -> Outcome {
        let engine = self.learner(pid).and_then(|b| b.engine);
        match (job, engine) {
            (Job::Load(load), _) => {
                let state = match &load.from {
                    LoadFrom::Base => Some((PolicyVersion(0), base_digest())),
                    LoadFrom::Checkpoint(dir) => self.checkpoints.get(dir).map(|s| (s.version, s.digest)),
                };
                let Some((version, digest)) = state.filter(|(version, _)| *version == load.version) else {
                    return failed(format!("{:?} is not there", load.from));
                };
                self.engine_takes(pid, version, digest);
                Outcome::Loaded { version, digest, sha256: format!("{digest:064x}") }
            }
            (Job::Step(request), Some((_, base))) => self.step(pid, &request, base),
            (Job::Hash(commit), _) => {
                let weights_sha256 = format!("{:064x}", commit.weights_digest);
                Outcome::Stepped(StepCommit { weights_sha256, ..commit })
            }
            (Job::Publish(publish), Some((version, digest))) => {
                self.ring.finish_writing(publish.slot, version, digest);
                Outcome::Published { digest, publish_us: 0 }
            }
            (Job::Checkpoint(save), Some((version, digest))) => {
                let dir = format!("checkpoints/step-{}", save.version);
                self.checkpoints.insert(dir.clone(), Saved { version, digest, damaged: false });
                Outcome::Saved { dir, manifest_sha256: format!("{digest:064x}") }
            }
            (job, None) => failed(format!("{job:?} without weights")),
        }
    }

    fn step(&mut self, pid: u32, request: &StepRequest, base: u64) -> Outcome {
        let mut digests = Vec::new();
        for payload in &request.groups {
            match payload_digest(payload) {
                Ok(digest) => digests.push(digest),
                Err(error) => return failed(error.to_string()),
            }
        }
        if digests != request.intent.digests {
            return failed(format!(
                "step {}: {digests:?} came, the intent names {:?}",
                request.intent.step, request.intent.digests
            ));
        }
        let (version, digest) = (request.intent.base.next(), stepped(base, &digests));
        self.engine_takes(pid, version, digest);
        self.count(if request.replay { "replays" } else { "steps" });
        let weights_sha256 = if request.hash { format!("{digest:064x}") } else { String::new() };
        Outcome::Stepped(StepCommit {
            step: request.intent.step,
            version,
            weights_sha256,
            weights_digest: digest,
            metrics: Vec::new(),
        })
    }

    fn engine_takes(&mut self, pid: u32, version: PolicyVersion, digest: u64) {
        if let Some(brain) = self.learner(pid) {
            brain.engine = Some((version, digest));
        }
        self.see(Seen::Took { pid, version, digest });
    }
}

fn failed(error: String) -> Outcome {
    Outcome::Failed(Failure { error, fatal: true, fault: Fault::Worker, aftermath: Aftermath::WeightsLost })
}
