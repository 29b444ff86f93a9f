//! What graders said.
use crate::{SampleIx, Trajectory};
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Named parts of a score, in the order of the config.
pub type Breakdown = Vec<(String, f64)>;

/// A finite score.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct Score {
    /// The reward.
    pub score: f64,
    /// Its parts.
    pub breakdown: Breakdown,
    /// A JSON object of the grader's own.
    pub metadata_json: String,
}

/// Score or failure of one sample. A grader that cannot be reached never reads as reward 0.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub enum ScoreOutcome {
    /// Graded.
    Scored(Score),
    /// Not graded, after retries.
    Failed {
        /// Which grader and why.
        error: String,
        /// Whether a later try may succeed.
        retryable: bool,
    },
}

/// A sample with its score.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct ScoredTrajectory {
    /// What was generated.
    pub trajectory: Trajectory,
    /// What it earned.
    pub score: Score,
}

/// One sample's outcome in a scoring reply.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct SampleOutcome {
    /// Which sample.
    pub sample: SampleIx,
    /// Its outcome.
    pub outcome: ScoreOutcome,
}
