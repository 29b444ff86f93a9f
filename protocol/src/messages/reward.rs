//! Between coordinator and reward workers. Requests and replies travel as bulk.
use super::wire_messages;
use crate::{AttemptId, Epoch, GroupId, LeasePurpose, SampleIx, Turn, score::SampleOutcome};
use bincode::{Decode, Encode};

/// What a grader sees of one sample: the dialogue, never token ids.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct SampleToScore {
    /// Which sample.
    pub sample: SampleIx,
    /// Its turns.
    pub turns: Vec<Turn>,
    /// The episode's context (`Trajectory::context_json`), a JSON object.
    pub context_json: String,
}

/// A whole group to grade, so that relative graders can rank it.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct ScoreRequest {
    /// Epoch of the request.
    pub epoch: Epoch,
    /// Purpose of the group.
    pub purpose: LeasePurpose,
    /// Group.
    pub group: GroupId,
    /// Attempt at scoring it, fenced like a lease.
    pub attempt: AttemptId,
    /// The data row as a JSON object (answer and further columns).
    pub item_json: String,
    /// Random key for graders that draw (run seed).
    pub seed: u64,
    /// Samples in order.
    pub samples: Vec<SampleToScore>,
}

/// All outcomes of a request, in sample order.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct ScoreReply {
    /// Epoch of the request.
    pub epoch: Epoch,
    /// Purpose.
    pub purpose: LeasePurpose,
    /// Group.
    pub group: GroupId,
    /// Attempt.
    pub attempt: AttemptId,
    /// Outcomes.
    pub outcomes: Vec<SampleOutcome>,
    /// Microseconds spent grading (a report).
    pub score_us: u64,
}

/// Proof of life.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct RewardBeat {
    /// Moves with every group that is started or graded, and with time while a grader is within its own limits; a worker
    /// that has requests and whose counter stands still is hung.
    pub progress: u64,
    /// Requests in work.
    pub running: u16,
    /// State of each grader's circuit breaker, `(name, state)`.
    pub breakers: Vec<(String, String)>,
}

wire_messages! {
    /// From a reward worker.
    RewardToCoordinator {
        /// Number of groups it takes at once; after connecting.
        1 => Ready(u16),
        /// Bulk, acknowledged once journalled.
        2 => Scored(ScoreReply),
        /// Each second.
        3 => Beat(RewardBeat),
    } removed []
}

wire_messages! {
    /// To a reward worker.
    CoordinatorToReward {
        /// Bulk: grade this group.
        1 => Score(ScoreRequest),
        /// Leave; the reason is for the log.
        2 => Drain(String),
    } removed []
}
