//! Facts as commands of the log, and commands as facts. What a delivery says is read from its bytes again, so that every keeper
//! writes what the workers sent.
use crate::ledger::entry::{Accepted, Entry};
use crate::progress::EvaluationReport;
use cohort_protocol::keeping::{Delivered, LedgerCommand, LedgerFact};
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{CodecError, Epoch, TrajectoryBatch, codec};
use std::sync::Arc;

/// The command that records `entries`.
#[must_use]
pub fn record(epoch: Epoch, entries: &[Entry]) -> LedgerCommand {
    LedgerCommand::Record { epoch, facts: entries.iter().map(fact).collect() }
}

fn fact(entry: &Entry) -> LedgerFact {
    match entry.clone() {
        Entry::Opened { group, cursor, epoch } => LedgerFact::Opened { group, cursor, epoch },
        Entry::Leased { group, attempt, worker, epoch, at_ms } => LedgerFact::Leased { group, attempt, worker, epoch, at_ms },
        Entry::Trajectories(accepted) => LedgerFact::Trajectories(delivered(accepted)),
        Entry::Scores(accepted) => LedgerFact::Scores(delivered(accepted)),
        Entry::Intent(intent) => LedgerFact::Intent(intent),
        Entry::Commit(commit) => LedgerFact::Commit(commit),
        Entry::Dropped { group, reason, detail } => LedgerFact::Dropped { group, reason: reason.into_owned(), detail },
        Entry::Checkpoint { version, dir, manifest_sha256, at_ms } => {
            LedgerFact::Checkpoint { version, dir, manifest_sha256, at_ms }
        }
        // Numbers and text: a report can always be written.
        Entry::Evaluation(report) => LedgerFact::Evaluation(serde_json::to_string(&report).unwrap_or_default()),
    }
}

fn delivered<T>(accepted: Accepted<T>) -> Delivered {
    let Accepted { worker, digest, payload, .. } = accepted;
    Delivered { worker, digest, payload: Arc::unwrap_or_clone(payload) }
}

/// The facts of a command.
///
/// # Errors
/// [`CodecError`]: they are of another build.
pub(super) fn entries(facts: Vec<LedgerFact>) -> Result<Vec<Entry>, CodecError> {
    facts.into_iter().map(entry).collect()
}

fn entry(fact: LedgerFact) -> Result<Entry, CodecError> {
    Ok(match fact {
        LedgerFact::Opened { group, cursor, epoch } => Entry::Opened { group, cursor, epoch },
        LedgerFact::Leased { group, attempt, worker, epoch, at_ms } => Entry::Leased { group, attempt, worker, epoch, at_ms },
        LedgerFact::Trajectories(Delivered { worker, digest, payload }) => {
            let value: TrajectoryBatch = codec::decode(&payload)?;
            let (group, attempt) = (value.group, value.attempt);
            Entry::Trajectories(Accepted { group, attempt, worker, payload: payload.into(), digest, value: value.into() })
        }
        LedgerFact::Scores(Delivered { worker, digest, payload }) => {
            let value: ScoreReply = codec::decode(&payload)?;
            let (group, attempt) = (value.group, value.attempt);
            Entry::Scores(Accepted { group, attempt, worker, payload: payload.into(), digest, value: value.into() })
        }
        LedgerFact::Intent(intent) => Entry::Intent(intent),
        LedgerFact::Commit(commit) => Entry::Commit(commit),
        LedgerFact::Dropped { group, reason, detail } => Entry::Dropped { group, reason: reason.into(), detail },
        LedgerFact::Checkpoint { version, dir, manifest_sha256, at_ms } => {
            Entry::Checkpoint { version, dir, manifest_sha256, at_ms }
        }
        LedgerFact::Evaluation(report) => {
            let read = serde_json::from_str::<EvaluationReport>(&report);
            Entry::Evaluation(read.map_err(|e| CodecError::Malformed { what: "evaluation report", why: e.to_string() })?)
        }
    })
}
