//! Files for people and other programs: `status.json`, `metrics.jsonl`, `evaluations.jsonl`. Written by a thread of their
//! own from what is already in the ledger; a run goes on without them.
//!
//! Queue: [`QUEUE`]; a state that finds it full is left out (the next one follows within a second), records wait.
use crate::ledger::place::write_atomically;
use crate::ledger::{Past, RunPaths};
use crate::progress::{EvaluationReport, RunStatus};
use cohort_learner::sinks::{JsonlSink, Record, Sink};
use cohort_protocol::{StepCommit, StepId};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

const QUEUE: usize = 256;

/// Something to write.
#[derive(Debug)]
pub(super) enum Export {
    /// The run's state now.
    Status(Box<RunStatus>),
    /// A committed step.
    Commit(StepCommit),
    /// A recorded evaluation round.
    Evaluation(EvaluationReport),
}

/// The coordinator's hold on the thread.
#[derive(Debug)]
pub(super) struct Exports {
    queue: mpsc::Sender<Export>,
    thread: JoinHandle<()>,
}

impl Exports {
    /// Brings the files of an earlier incarnation to what the ledger says, then waits for more.
    pub(super) fn start(paths: RunPaths, past: &Past) -> std::io::Result<Self> {
        let (queue, mut inbox) = mpsc::channel(QUEUE);
        let (commits, rounds) = (past.commits.values().cloned().collect::<Vec<_>>(), past.evaluations.clone());
        let thread = std::thread::Builder::new().name("exports".into()).spawn(move || {
            let mut metrics = open_metrics(&paths, &commits);
            if let Err(error) = rewrite_evaluations(&paths.evaluations(), &rounds) {
                tracing::warn!(target: "cohort::exports", %error, "evaluations_not_written");
            }
            while let Some(export) = inbox.blocking_recv() {
                match export {
                    Export::Status(status) => write_status(&paths, &status),
                    Export::Commit(commit) => write_commit(metrics.as_deref_mut(), &commit),
                    Export::Evaluation(report) => {
                        if let Err(error) = append_line(&paths.evaluations(), &report) {
                            tracing::warn!(target: "cohort::exports", %error, "evaluation_not_written");
                        }
                    }
                }
            }
        })?;
        Ok(Self { queue, thread })
    }

    /// Writes a record.
    pub(super) async fn write(&self, export: Export) {
        // A thread that is gone has said why in the log; the ledger has the record.
        let _ = self.queue.send(export).await;
    }

    /// Writes the state, if there is room.
    pub(super) fn status(&self, status: RunStatus) {
        // Left out when the disk is slow: the next state follows.
        let _ = self.queue.try_send(Export::Status(Box::new(status)));
    }

    /// Ends the thread; [`JoinHandle::join`] it on a blocking thread.
    pub(super) fn finish(self) -> JoinHandle<()> {
        self.thread
    }
}

fn open_metrics(paths: &RunPaths, commits: &[StepCommit]) -> Option<Box<dyn Sink>> {
    let open = || {
        let mut sink = JsonlSink::open(&paths.metrics())?;
        // The ledger has every metric of every commit: the file is made of it anew.
        sink.cut_back(StepId(0))?;
        commits.iter().try_for_each(|commit| sink.record(&record(commit)))?;
        Ok::<_, cohort_learner::sinks::SinkError>(Box::new(sink) as Box<dyn Sink>)
    };
    open().map_err(|error| tracing::warn!(target: "cohort::exports", %error, "metrics_not_written")).ok()
}

fn record(commit: &StepCommit) -> Record {
    Record { step: commit.step, metrics: commit.metrics.clone() }
}

fn write_commit(metrics: Option<&mut (dyn Sink + 'static)>, commit: &StepCommit) {
    let Some(sink) = metrics else { return };
    if let Err(error) = sink.record(&record(commit)) {
        tracing::warn!(target: "cohort::exports", %error, step = commit.step.0, "metrics_not_written");
    }
}

fn write_status(paths: &RunPaths, status: &RunStatus) {
    let written = serde_json::to_vec_pretty(status).map_err(|e| e.to_string());
    let written = written.and_then(|bytes| write_atomically(&paths.status(), &bytes).map_err(|e| e.to_string()));
    if let Err(error) = written {
        tracing::warn!(target: "cohort::exports", error, "status_not_written");
    }
}

fn append_line(path: &Path, report: &EvaluationReport) -> std::io::Result<()> {
    let line = format!("{}\n", serde_json::to_string(report)?);
    fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}

fn rewrite_evaluations(path: &Path, rounds: &[EvaluationReport]) -> std::io::Result<()> {
    let mut text = String::new();
    for round in rounds {
        text.push_str(&serde_json::to_string(round)?);
        text.push('\n');
    }
    fs::write(path, text)
}
