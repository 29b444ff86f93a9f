//! What is written into the ledger: one value for every fact, each made of several rows where several tables witness it.
use crate::progress::EvaluationReport;
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{
    AttemptId, CodecError, Epoch, GroupId, PolicyVersion, StepCommit, StepIntent, TrajectoryBatch, WorkerId, codec,
};
use std::borrow::Cow;
use std::sync::Arc;

/// A fact. Applied in batches, in order, all or nothing.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A training group is leased for the first time: generated and in flight from here on.
    Opened {
        /// Group.
        group: GroupId,
        /// Place in the stream of data rows.
        cursor: u64,
        /// Coordinator incarnation.
        epoch: Epoch,
    },
    /// A training group is leased.
    Leased {
        /// Group.
        group: GroupId,
        /// Attempt.
        attempt: AttemptId,
        /// To whom.
        worker: WorkerId,
        /// Coordinator incarnation.
        epoch: Epoch,
        /// Wall clock, milliseconds since the Unix epoch (a report).
        at_ms: u64,
    },
    /// A group's trajectories are accepted.
    Trajectories(Accepted<TrajectoryBatch>),
    /// A group's scores are accepted.
    Scores(Accepted<ScoreReply>),
    /// A step is about to be taken.
    Intent(StepIntent),
    /// A step was taken: its groups are consumed and leave flight.
    Commit(StepCommit),
    /// A group is given up and leaves flight.
    Dropped {
        /// Group.
        group: GroupId,
        /// One of a few words that reports count by.
        reason: Cow<'static, str>,
        /// The cause in full.
        detail: String,
    },
    /// A checkpoint is complete.
    Checkpoint {
        /// Version it holds.
        version: PolicyVersion,
        /// Directory, relative to the run directory.
        dir: String,
        /// SHA-256 of its manifest.
        manifest_sha256: String,
        /// Wall clock, milliseconds since the Unix epoch (a report).
        at_ms: u64,
    },
    /// An evaluation round is complete.
    Evaluation(EvaluationReport),
}

/// A delivery that was accepted.
#[derive(Debug, Clone)]
pub struct Accepted<T> {
    /// Group.
    pub group: GroupId,
    /// Attempt that delivered it.
    pub attempt: AttemptId,
    /// Who.
    pub worker: WorkerId,
    /// Its bytes as they go to the segment.
    pub payload: Arc<Vec<u8>>,
    /// Digest of its contents: [`digest_trajectories`], or of the whole group's payload.
    pub digest: String,
    /// What the bytes say.
    pub value: Arc<T>,
}

impl Accepted<TrajectoryBatch> {
    /// Encodes and digests a batch; heavy, off the coordinator's own thread.
    pub fn trajectories(batch: Arc<TrajectoryBatch>, worker: WorkerId) -> Result<Self, CodecError> {
        Ok(Self {
            group: batch.group,
            attempt: batch.attempt,
            worker,
            payload: Arc::new(codec::encode(&*batch)?),
            digest: digest_trajectories(&batch)?,
            value: batch,
        })
    }
}

impl Accepted<ScoreReply> {
    /// Encodes a reply. `digest` is that of the group's payload, which the scores complete: what an intent names.
    pub fn scores(reply: Arc<ScoreReply>, worker: WorkerId, digest: String) -> Result<Self, CodecError> {
        let payload = Arc::new(codec::encode(&*reply)?);
        Ok(Self { group: reply.group, attempt: reply.attempt, worker, payload, digest, value: reply })
    }
}

/// BLAKE3, hex, over a batch's trajectories without their timings: equal for every worker, attempt and epoch.
pub fn digest_trajectories(batch: &TrajectoryBatch) -> Result<String, CodecError> {
    let mut hasher = blake3::Hasher::new();
    for trajectory in &batch.trajectories {
        let timeless = cohort_protocol::Trajectory { generate_us: 0, ..trajectory.clone() };
        hasher.update(&codec::encode(&timeless)?);
    }
    Ok(hasher.finalize().to_hex().to_string())
}
