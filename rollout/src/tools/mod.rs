//! Tools that an agent brings along, whatever the environment.
pub mod calculator;

use crate::RolloutError;
use async_trait::async_trait;
use std::sync::Arc;

/// Something an agent can call with a text and that answers with a text.
#[async_trait]
pub trait Tool: Send + Sync {
    /// The name in a call.
    fn name(&self) -> &'static str;
    /// One sentence for the policy: what it does and what it takes.
    fn description(&self) -> &'static str;
    /// The answer, or what was wrong with the call; both are shown to the policy.
    async fn call(&self, arguments: &str) -> Result<String, String>;
    /// Whether the same call is always answered the same way.
    fn replays(&self) -> bool {
        true
    }
}

/// The built-in tool of a name.
pub fn by_name(name: &str) -> Result<Arc<dyn Tool>, RolloutError> {
    match name {
        "calculator" => Ok(Arc::new(calculator::Calculator)),
        other => Err(RolloutError::Config {
            place: "agent.tools",
            problem: format!("there is no tool {other:?}; built in: calculator"),
        }),
    }
}
