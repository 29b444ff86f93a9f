//! Where the metrics of committed steps go. The coordinator feeds every sink after each commit.
//!
//! Invariants
//! - **N1** a sink is an export: the ledger is the record. On resume it is cut back to the last commit and fed on, so that
//!   no step is missing or doubled in it.
//! - **N2** a sink that fails costs its own output, never the run: the error goes to the log.
pub mod jsonl;
pub mod text;

pub use jsonl::JsonlSink;
pub use text::TextSink;

use cohort_protocol::StepId;
use std::fmt::Debug;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Values that belong to a step: its commit's metrics, timings, an evaluation round.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The step; 0 is before training.
    pub step: StepId,
    /// Values by the names of `docs/algorithms.md`, in order.
    pub metrics: Vec<(String, f64)>,
}

/// A destination of metrics.
pub trait Sink: Debug + Send {
    /// For messages.
    fn name(&self) -> String;
    /// Takes one record; it is out of the process when this returns.
    fn record(&mut self, record: &Record) -> Result<(), SinkError>;
    /// Forgets every record of a step after `last`.
    fn cut_back(&mut self, last: StepId) -> Result<(), SinkError>;
}

/// A sink could not write.
#[derive(Debug, Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct SinkError {
    /// What was tried.
    pub action: &'static str,
    /// Where.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}
