//! Agents: how the policy takes part in a dialogue.
pub mod chat;
pub mod tool;

use crate::scene::Scene;
use crate::{ChatFormat, Grammar, RolloutError};
use async_trait::async_trait;
use cohort_protocol::FinishReason;

/// Speaks for the policy in one turn of a dialogue: as many generations and tool calls as it takes until the environment
/// is to answer.
#[async_trait]
pub trait Agent: Send + Sync {
    /// Acts until its turn is over. `Some` ends the episode.
    async fn act(&self, scene: &mut Scene<'_>) -> Result<Option<FinishReason>, RolloutError>;
    /// Instructions put before a dialogue that has none of its own.
    fn system_prompt(&self) -> Option<&str>;
    /// How the policy's dialogues are written.
    fn format(&self) -> &ChatFormat;
    /// Texts that end a turn.
    fn stop(&self) -> &[String];
    /// Whether its tools answer a call the same way each time, so that an episode can be played again.
    fn replays(&self) -> bool {
        true
    }
    /// What every turn follows, where something is asked.
    fn grammar(&self) -> Option<&Grammar> {
        None
    }
}
