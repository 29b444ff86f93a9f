//! Calls tools until it has something to say.
//!
//! A turn is a call when it is `name(argument)` with the name of a tool at hand, or when it holds
//! `<tool_call>{"name": .., "arguments": ..}</tool_call>` blocks as Hermes and Qwen models write them.
use super::Agent;
use crate::scene::{Scene, Spoken};
use crate::tools::Tool;
use crate::{AgentConfig, ChatFormat, Grammar, RolloutError};
use async_trait::async_trait;
use cohort_protocol::{FinishReason, ToolCall, ToolResult};
use serde_json::Value;
use std::sync::Arc;

/// See the module.
pub struct ToolAgent {
    config: AgentConfig,
    format: ChatFormat,
    grammar: Option<Grammar>,
    tools: Vec<Arc<dyn Tool>>,
}

impl ToolAgent {
    /// From its section, the model's format, the section's constraint, compiled, and the tools that it names.
    #[must_use]
    pub fn new(config: AgentConfig, format: ChatFormat, grammar: Option<Grammar>, tools: Vec<Arc<dyn Tool>>) -> Self {
        Self { config, format, grammar, tools }
    }

    async fn answer(&self, scene: &mut Scene<'_>, call: &ToolCall) -> Result<ToolResult, RolloutError> {
        if let Some(result) = scene.call_environment(call).await? {
            return Ok(result);
        }
        let tool = self.tools.iter().find(|tool| tool.name() == call.name);
        let (content, is_error) = match tool {
            Some(tool) => match tool.call(&call.arguments).await {
                Ok(content) => (content, false),
                Err(problem) => (problem, true),
            },
            None => (format!("there is no tool {}", call.name), true),
        };
        Ok(ToolResult { name: call.name.clone(), content, is_error })
    }
}

#[async_trait]
impl Agent for ToolAgent {
    async fn act(&self, scene: &mut Scene<'_>) -> Result<Option<FinishReason>, RolloutError> {
        let mut calls_left = self.config.max_tool_calls;
        loop {
            let text = match scene.speak().await? {
                Spoken::Said(text) => text,
                Spoken::Ended(finish) => return Ok(Some(finish)),
            };
            let known: Vec<&str> = scene.tools().iter().copied().chain(self.tools.iter().map(|t| t.name())).collect();
            let calls = parse_calls(&text, &known);
            if calls.is_empty() {
                return Ok(None);
            }
            for call in calls {
                if calls_left == 0 {
                    return Ok(Some(FinishReason::MaxTurns));
                }
                calls_left -= 1;
                let result = self.answer(scene, &call).await?;
                scene.show_result(call, result);
            }
        }
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

    fn replays(&self) -> bool {
        self.tools.iter().all(|tool| tool.replays())
    }

    fn grammar(&self) -> Option<&Grammar> {
        self.grammar.as_ref()
    }
}

/// The calls in a turn, in order. `known` are the names that the short form may use.
#[must_use]
pub fn parse_calls(text: &str, known: &[&str]) -> Vec<ToolCall> {
    let short = text.trim().strip_suffix(')').and_then(|rest| rest.split_once('('));
    if let Some((name, arguments)) = short
        && known.contains(&name)
    {
        return vec![ToolCall { name: name.to_owned(), arguments: arguments.to_owned() }];
    }
    let mut calls = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("<tool_call>") {
        let (body, next) = after.split_once("</tool_call>").unwrap_or((after, ""));
        calls.push(json_call(body.trim()));
        rest = next;
    }
    calls
}

/// A call that cannot be read keeps its text, so that the tool's error shows it to the policy.
fn json_call(body: &str) -> ToolCall {
    let unread = || ToolCall { name: "unreadable".into(), arguments: body.to_owned() };
    let Ok(Value::Object(call)) = serde_json::from_str::<Value>(body) else { return unread() };
    let Some(Value::String(name)) = call.get("name") else { return unread() };
    let arguments = match call.get("arguments") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    ToolCall { name: name.clone(), arguments }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let call = |name: &str, arguments: &str| ToolCall { name: name.into(), arguments: arguments.into() };
        assert_eq!(parse_calls(" lookup(4821) ", &["lookup"]), [call("lookup", "4821")]);
        assert!(parse_calls("lookup(4821)", &["price"]).is_empty());
        assert!(parse_calls("I would lookup(4821)", &["lookup"]).is_empty());
        assert!(parse_calls("lookup(4821", &["lookup"]).is_empty());
        let two = "Sure.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call><tool_call>{\"name\":\"b\"}</tool_call>";
        assert_eq!(parse_calls(two, &[]), [call("a", "{\"x\":1}"), call("b", "")]);
        assert_eq!(parse_calls("<tool_call>{oops", &[]), [call("unreadable", "{oops")]);
    }
}
