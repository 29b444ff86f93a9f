//! JSON shapes for people and scripts; fields may be added, these stay.
use crate::{FinishReason, GroupId, SampleIx, Score, ScoredTrajectory, Trajectory, Turn, VersionSpan};
use serde::{Deserialize, Serialize};

/// A trajectory as `rollouts --json` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrajectoryJson {
    /// `group-sample`.
    pub trajectory_id: String,
    /// Turns in order.
    pub turns: Vec<Turn>,
    /// Per-turn rewards, where the environment gave one.
    pub turn_rewards: Vec<Option<f64>>,
    /// The score.
    pub total_reward: f64,
    /// Named parts of the score.
    pub breakdown: serde_json::Map<String, serde_json::Value>,
    /// Advantage of this sample.
    pub advantage: Option<f64>,
    /// Exact token ids.
    pub token_ids: Vec<u32>,
    /// 1 where sampled.
    pub mask: Vec<u8>,
    /// Stored log-probs.
    pub logp: Vec<f32>,
    /// Stored log-probs of the distribution drawn from.
    pub logp_sampled: Vec<f32>,
    /// Temperature.
    pub temperature: f32,
    /// Versions of the spans.
    pub spans: Vec<VersionSpan>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Number of turns.
    pub episode_length: usize,
    /// The environment's context object.
    pub metadata: serde_json::Value,
}

/// A group as `rollouts --json` prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupJson {
    /// Group.
    pub group_id: u64,
    /// Step that consumed it.
    pub step: u64,
    /// The data row.
    pub item: serde_json::Value,
    /// Samples in order.
    pub trajectories: Vec<TrajectoryJson>,
}

impl TrajectoryJson {
    /// Back to the wire shape, as a sample of a group. Timings are not exported, and come back as 0.
    #[must_use]
    pub fn into_scored(self, group: GroupId, sample: SampleIx) -> ScoredTrajectory {
        let part = |(name, value): (String, serde_json::Value)| value.as_f64().map(|value| (name, value));
        ScoredTrajectory {
            score: Score {
                score: self.total_reward,
                breakdown: self.breakdown.into_iter().filter_map(part).collect(),
                metadata_json: String::new(),
            },
            trajectory: Trajectory {
                group,
                sample,
                token_ids: self.token_ids.into(),
                mask: self.mask,
                logp: self.logp.into(),
                logp_sampled: self.logp_sampled.into(),
                spans: self.spans,
                temperature: self.temperature,
                turns: self.turns,
                finish: self.finish_reason,
                generate_us: 0,
                context_json: self.metadata.to_string(),
            },
        }
    }

    /// From the wire shape.
    #[must_use]
    pub fn new(scored: &ScoredTrajectory, advantage: Option<f64>) -> Self {
        let t = &scored.trajectory;
        Self {
            trajectory_id: format!("{}-{}", t.group, t.sample),
            turn_rewards: t.turns.iter().map(|turn| turn.reward).collect(),
            episode_length: t.turns.len(),
            turns: t.turns.clone(),
            total_reward: scored.score.score,
            breakdown: scored.score.breakdown.iter().map(|(k, v)| (k.clone(), serde_json::json!(v))).collect(),
            advantage,
            token_ids: t.token_ids.0.clone(),
            mask: t.mask.clone(),
            logp: t.logp.0.clone(),
            logp_sampled: t.logp_sampled.0.clone(),
            temperature: t.temperature,
            spans: t.spans.clone(),
            finish_reason: t.finish,
            metadata: serde_json::from_str(&t.context_json).unwrap_or(serde_json::Value::Null),
        }
    }
}
