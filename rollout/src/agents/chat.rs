//! One generation a turn.
use super::Agent;
use crate::scene::{Scene, Spoken};
use crate::{AgentConfig, ChatFormat, Grammar, RolloutError};
use async_trait::async_trait;
use cohort_protocol::FinishReason;

/// See the module.
#[derive(Debug)]
pub struct ChatAgent {
    config: AgentConfig,
    format: ChatFormat,
    grammar: Option<Grammar>,
}

impl ChatAgent {
    /// From its section, the model's format and the section's constraint, compiled.
    #[must_use]
    pub fn new(config: AgentConfig, format: ChatFormat, grammar: Option<Grammar>) -> Self {
        Self { config, format, grammar }
    }
}

#[async_trait]
impl Agent for ChatAgent {
    async fn act(&self, scene: &mut Scene<'_>) -> Result<Option<FinishReason>, RolloutError> {
        Ok(match scene.speak().await? {
            Spoken::Said(_) => None,
            Spoken::Ended(finish) => Some(finish),
        })
    }

    fn system_prompt(&self) -> Option<&str> {
        self.config.system_prompt.as_deref()
    }

    fn format(&self) -> &ChatFormat {
        &self.format
    }

    fn stop(&self) -> &[String] {
        &self.config.stop
    }

    fn grammar(&self) -> Option<&Grammar> {
        self.grammar.as_ref()
    }
}
