//! Environments: whom the policy talks to.
pub mod order_desk;
pub mod prompts;
pub mod scenarios;

use crate::RolloutError;
use async_trait::async_trait;
use cohort_engine::DrawKey;
use cohort_protocol::{FinishReason, SampledItem, ToolCall, ToolResult, Turn};
use serde_json::{Map, Value};

/// Makes episodes from data rows.
///
/// Invariant **N1**: an episode is a pure function of (row, key, what the policy said), unless the environment talks to the
/// outside world and says so.
#[async_trait]
pub trait Environment: Send + Sync {
    /// A fresh episode; `key` is for environments that draw.
    async fn reset(&self, item: &SampledItem, key: DrawKey) -> Result<Box<dyn Episode>, RolloutError>;
    /// Assistant turns of an episode, at most.
    fn max_turns(&self) -> u32;
    /// Whether N1 holds. Where it does not, a group that is lost with its worker starts over; where it does, another worker
    /// goes on from what the policy had said.
    fn replays(&self) -> bool {
        true
    }
}

/// One episode's state.
#[async_trait]
pub trait Episode: Send {
    /// The turns before the assistant first speaks; the last one is the user's.
    fn opening(&self) -> Vec<Turn>;

    /// Tools of this environment.
    fn tools(&self) -> &'static [&'static str] {
        &[]
    }

    /// Answers a tool call; `None` where the environment has no such tool.
    async fn call_tool(&mut self, _call: &ToolCall) -> Result<Option<ToolResult>, RolloutError> {
        Ok(None)
    }

    /// Answers a finished assistant turn.
    async fn step(&mut self, turn: &Turn) -> Result<Observation, RolloutError>;

    /// What the reward is told about the whole episode.
    fn context(&self, _turns: &[Turn], _finish: FinishReason) -> Map<String, Value> {
        Map::new()
    }
}

/// An environment's answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observation {
    /// Turns to put into the dialogue.
    pub turns: Vec<Turn>,
    /// Whether the episode is over.
    pub done: bool,
    /// Reward of the answered turn, where the environment gives one.
    pub reward: Option<f64>,
}

impl Observation {
    /// The episode is over.
    #[must_use]
    pub fn done() -> Self {
        Self { done: true, ..Self::default() }
    }
}

/// A row as a JSON object.
fn object(item: &SampledItem) -> Result<Map<String, Value>, RolloutError> {
    match serde_json::from_str(&item.json) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(RolloutError::Item { row: item.row, problem: "it is not a JSON object".into() }),
    }
}
