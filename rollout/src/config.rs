//! `[agent]` and `[environment]`: what a user writes.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How the policy takes part in a dialogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Registered agent: "chat" (one reply a turn) or "tool" (calls tools until it replies). Default "chat".
    pub r#type: String,
    /// Instructions put before every dialogue. Default none.
    pub system_prompt: Option<String>,
    /// Sampled tokens of one assistant turn, at most. Default 512.
    pub max_new_tokens: u32,
    /// Logits are divided by this when training samples are drawn. Default 1.
    pub temperature: f64,
    /// Texts that end a turn, besides the model's own end tokens. Default none.
    pub stop: Vec<String>,
    /// Tools of the agent's own, by name ("calculator"); an environment may bring more. Default none.
    pub tools: Vec<String>,
    /// Tool calls before a reply, at most, in one turn of the dialogue. Default 8.
    pub max_tool_calls: u32,
    /// What a `stub://` model says, in turn; no model is loaded. Default one polite sentence.
    pub stub_responses: Vec<String>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            r#type: "chat".into(),
            system_prompt: None,
            max_new_tokens: 512,
            temperature: 1.0,
            stop: Vec::new(),
            tools: Vec::new(),
            max_tool_calls: 8,
            stub_responses: vec!["Thank you for asking. How can I help?".into()],
        }
    }
}

/// Where dialogues come from and how they go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EnvironmentConfig {
    /// Registered environment: "order_desk", "prompts" (single turn from a file) or "scenarios" (a scripted user from a
    /// file). Default "order_desk".
    pub r#type: String,
    /// Data file of "prompts" (.jsonl, .json) and "scenarios" (.json, .jsonl); relative to the configuration's folder.
    pub path: Option<PathBuf>,
    /// File of held-out rows, apart from `path`, whose rows then all are for training; a row that stands in both files is
    /// refused. Default none: rows of `path` are held out.
    pub heldout_path: Option<PathBuf>,
    /// Assistant turns of one episode, at most, tool calls included. Default 10.
    pub max_turns: u32,
    /// Rows kept for evaluation and never trained on. Default a tenth of the file, at most 256; all
    /// rows of `heldout_path`, where there is one; 256 orders at the order desk.
    pub heldout: Option<u32>,
    /// Whether each epoch has its own order; otherwise rows come as they stand in the file. Default true.
    pub shuffle: bool,
    /// Key that decides which rows are held out, apart from the run's seed so that runs compare. Default 0.
    pub split_seed: u64,
    /// Phrases that end a scenario when either side says one (whole words, any case).
    pub goodbye: Vec<String>,
}

impl Default for EnvironmentConfig {
    fn default() -> Self {
        let goodbye = ["goodbye", "bye", "farewell", "see you", "that's all", "have a great day"];
        Self {
            r#type: "order_desk".into(),
            path: None,
            heldout_path: None,
            max_turns: 10,
            heldout: None,
            shuffle: true,
            split_seed: 0,
            goodbye: goodbye.map(str::to_owned).to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_and_missing_ones_have_defaults() {
        let agent: AgentConfig = serde_json::from_str(r#"{"type":"tool","max_new_tokens":16}"#).unwrap();
        assert_eq!((agent.r#type.as_str(), agent.max_new_tokens, agent.temperature), ("tool", 16, 1.0));
        let error = serde_json::from_str::<EnvironmentConfig>(r#"{"max_turn":3}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `max_turn`"), "{error}");
    }
}
