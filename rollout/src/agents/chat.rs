//! One generation a turn.
use super::Agent;
use crate::scene::{Scene, Spoken};
use crate::{AgentConfig, ChatFormat, RolloutError};
use async_trait::async_trait;
use cohort_protocol::FinishReason;

/// See the module.
#[derive(Debug, Clone)]
pub struct ChatAgent {
    config: AgentConfig,
    format: ChatFormat,
}

impl ChatAgent {
    /// From its section and the model's format.
    #[must_use]
    pub fn new(config: AgentConfig, format: ChatFormat) -> Self {
        Self { config, format }
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
}
