//! The thread behind a plug-in: starts it, hands it one group after the other, restarts it, gives it up.
//!
//! Queue: one question waits at most; the reward lets one caller in at a time.
use super::child::{Plugin, Spec, Wrong};
use crate::guard::Failure;
use cohort_actors::supervision::{ChildId, Command, Event, Exit, Restart, SupervisionPolicy, SupervisionState};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

const QUEUE: usize = 1;

struct Job {
    question: Map<String, Value>,
    answer: oneshot::Sender<Result<Value, Failure>>,
}

/// A handle; dropped, it kills the process and joins the thread.
pub(super) struct Supervisor {
    jobs: Option<mpsc::Sender<Job>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the thread. The process starts with the first question.
    pub(super) fn start(spec: Spec, policy: SupervisionPolicy) -> Result<Self, String> {
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let (stop, stopped) = oneshot::channel();
        let name = format!("plugin {}", spec.name);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("its thread cannot wait for the process: {e}"))?;
        let mut nurse = Nurse::new(spec, policy);
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = stopped => {}
                    () = nurse.serve(inbox) => {}
                }
                // Dropping the process kills its group; its exit is awaited so that no zombie stays behind.
                nurse.dismiss().await;
            });
        };
        let thread =
            std::thread::Builder::new().name(name).spawn(work).map_err(|e| format!("its thread cannot be started: {e}"))?;
        Ok(Self { jobs: Some(jobs), stop: Some(stop), thread: Some(thread) })
    }

    /// One question, answered within the process's deadlines.
    pub(super) async fn ask(&self, question: Map<String, Value>) -> Result<Value, Failure> {
        let gone = || Failure::Fatal("its supervising thread is gone".to_owned());
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(Job { question, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(stop) = self.stop.take() {
            // A thread that has ended needs no signal.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            // It only kills and waits: milliseconds.
            let _ = thread.join();
        }
    }
}

/// Carries out what [`SupervisionState`] decides about the one child. It starts on demand: a start that is due waits for
/// the next question.
struct Nurse {
    spec: Arc<Spec>,
    supervision: SupervisionState,
    child: ChildId,
    plugin: Option<Plugin>,
    gave_up: Option<String>,
}

impl Nurse {
    fn new(spec: Spec, policy: SupervisionPolicy) -> Self {
        let child = ChildId::from(&spec.name);
        let seed = u64::from(std::process::id());
        let (supervision, spec) = (SupervisionState::new(policy, seed), Arc::new(spec));
        Self { spec, supervision, child, plugin: None, gave_up: None }
    }

    async fn serve(&mut self, mut inbox: mpsc::Receiver<Job>) {
        while let Some(Job { question, answer }) = inbox.recv().await {
            if !answer.is_closed() {
                // Nobody waits any more where the worker was told to leave.
                let _ = answer.send(self.ask(question).await);
            }
        }
    }

    async fn ask(&mut self, question: Map<String, Value>) -> Result<Value, Failure> {
        let mut plugin = self.ready().await?;
        match plugin.ask(question).await {
            Ok(answer) => {
                self.plugin = Some(plugin);
                Ok(answer)
            }
            Err(Wrong::Raised(why)) => {
                self.plugin = Some(plugin);
                Err(Failure::Fatal(why))
            }
            Err(wrong) => Err(self.failed(plugin.end(wrong).await)),
        }
    }

    /// The running process, or a new one after its backoff.
    async fn ready(&mut self) -> Result<Plugin, Failure> {
        if let Some(mut plugin) = self.plugin.take() {
            if plugin.is_alive() {
                return Ok(plugin);
            }
            let failure = plugin.end(Wrong::Exited).await;
            self.failed(failure);
        }
        if let Some(due) = self.supervision.next_wake() {
            sleep_until(due.into()).await;
        }
        // The first question adds the child; later ones only let the time pass.
        let event = if self.supervision.children().next().is_none() {
            Event::Add(self.child.clone(), Restart::Permanent)
        } else {
            Event::Tick
        };
        self.decide(event);
        if let Some(why) = &self.gave_up {
            return Err(Failure::Fatal(why.clone()));
        }
        match Plugin::start(&self.spec).await {
            Ok(plugin) => Ok(plugin),
            Err(failure) => Err(self.failed(failure)),
        }
    }

    fn failed(&mut self, failure: Failure) -> Failure {
        warn!(target: "cohort::plugin", plugin = self.spec.name, error = failure.why(), "plugin_failed");
        let why = failure.why().to_owned();
        let exit = if failure.retryable() { Exit::Failed(why) } else { Exit::Fatal(why) };
        self.decide(Event::Exited(self.child.clone(), exit));
        failure
    }

    fn decide(&mut self, event: Event) {
        let mut commands = Vec::new();
        self.supervision.on_event(Instant::now().into_std(), event, &mut commands);
        for command in commands {
            // A start is carried out by `ready`, a stop has nothing left to stop.
            if let Command::Escalate(escalation) = command {
                self.gave_up = Some(format!("given up: {escalation}"));
            }
        }
    }

    async fn dismiss(&mut self) {
        if let Some(plugin) = self.plugin.take() {
            drop(plugin.end(Wrong::Raised("the worker leaves".to_owned())).await);
        }
    }
}
