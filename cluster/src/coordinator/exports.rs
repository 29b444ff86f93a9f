//! Files for people and other programs: `status.json`, `metrics.jsonl`, `evaluations.jsonl`. Written by a thread of their
//! own from what is already in the ledger; a run goes on without them.
//!
//! Queue: [`QUEUE`]; a state that finds it full is left out (the next one follows within a second), records wait. Records that
//! a full disk refused are kept and written when there is room: few, as no step is committed without it.
use crate::ledger::place::write_with_spare;
use crate::ledger::{Past, RunPaths};
use crate::progress::{EvaluationReport, RunStatus};
use cohort_learner::sinks::{JsonlSink, Record, Sink};
use cohort_protocol::{StepCommit, StepId};
use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const QUEUE: usize = 256;
/// Before what was refused is tried again.
const AGAIN: Duration = Duration::from_secs(5);

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
            let mut files = Files::open(paths, &commits, rounds);
            while let Some(export) = inbox.blocking_recv() {
                files.take(export);
            }
            files.write_missing();
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

/// The thread's own state.
struct Files {
    paths: RunPaths,
    metrics: Option<JsonlSink>,
    /// Commits that are not in `metrics.jsonl`.
    missing: VecDeque<StepCommit>,
    rounds: Vec<EvaluationReport>,
    /// `evaluations.jsonl` lacks some of the rounds.
    lacking: bool,
    /// When what was refused was tried last.
    tried: Instant,
}

impl Files {
    fn open(paths: RunPaths, commits: &[StepCommit], rounds: Vec<EvaluationReport>) -> Self {
        let metrics = open_metrics(&paths, commits);
        let mut files = Self { paths, metrics, missing: VecDeque::new(), rounds, lacking: true, tried: Instant::now() };
        files.write_rounds();
        files
    }

    fn take(&mut self, export: Export) {
        match export {
            Export::Status(status) => {
                write_status(&self.paths, &status);
                if self.tried.elapsed() >= AGAIN {
                    self.write_missing();
                }
            }
            Export::Commit(commit) => {
                self.missing.push_back(commit);
                if self.missing.len() == 1 {
                    self.append_commits();
                }
            }
            Export::Evaluation(report) => {
                let appended = append_line(&self.paths.evaluations(), &report);
                self.rounds.push(report);
                if let Err(error) = appended {
                    tracing::warn!(target: "cohort::exports", %error, "evaluation_not_written");
                    self.lacking = true;
                }
            }
        }
    }

    /// Appends what is missing, up to the first that cannot be.
    fn append_commits(&mut self) {
        let Some(sink) = &mut self.metrics else { return self.missing.clear() };
        while let Some(commit) = self.missing.front() {
            if let Err(error) = sink.record(&record(commit)) {
                tracing::warn!(target: "cohort::exports", %error, step = commit.step.0, "metrics_not_written");
                return;
            }
            self.missing.pop_front();
        }
    }

    /// What was refused is tried again; half a line of it may be there.
    fn write_missing(&mut self) {
        self.tried = Instant::now();
        if let (Some(sink), Some(first)) = (&mut self.metrics, self.missing.front()) {
            match sink.cut_back(StepId(first.step.0.saturating_sub(1))) {
                Ok(()) => self.append_commits(),
                Err(error) => tracing::warn!(target: "cohort::exports", %error, "metrics_not_written"),
            }
        }
        if self.lacking {
            self.write_rounds();
        }
    }

    fn write_rounds(&mut self) {
        match rewrite_evaluations(&self.paths.evaluations(), &self.rounds) {
            Ok(()) => self.lacking = false,
            Err(error) => tracing::warn!(target: "cohort::exports", %error, "evaluations_not_written"),
        }
    }
}

fn open_metrics(paths: &RunPaths, commits: &[StepCommit]) -> Option<JsonlSink> {
    let open = || {
        let mut sink = JsonlSink::open(&paths.metrics())?;
        // The ledger has every metric of every commit: the file is made of it anew.
        sink.cut_back(StepId(0))?;
        commits.iter().try_for_each(|commit| sink.record(&record(commit)))?;
        Ok::<_, cohort_learner::sinks::SinkError>(sink)
    };
    open().map_err(|error| tracing::warn!(target: "cohort::exports", %error, "metrics_not_written")).ok()
}

fn record(commit: &StepCommit) -> Record {
    Record { step: commit.step, metrics: commit.metrics.clone() }
}

fn write_status(paths: &RunPaths, status: &RunStatus) {
    let written = serde_json::to_vec_pretty(status).map_err(|e| e.to_string());
    let written = written.and_then(|bytes| write_with_spare(&paths.status(), &bytes).map_err(|e| e.to_string()));
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
