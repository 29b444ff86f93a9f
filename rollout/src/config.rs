//! `[rollout]`, `[agent]` and `[environment]`: what a user writes.
use cohort_model::Quantization;
use cohort_protocol::SamplingParams;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How the policy is computed where it samples.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Number format of the products of sampling: "none" (default; the model's own), or "int8": weights and activations rounded to
    /// int8 in groups of 32, the weights anew at every new version. Learning stays in the model's format, so that sampled tokens
    /// are inexact: needs a `training.correction`, and `model.engine = "native"`. Part of the run's numerics.
    pub quantization: Quantization,
    /// A rollout worker whose numerics are not the run's (`cluster join --sample-with`, another build): "refuse" (default), or "correct":
    /// it takes part, and all tokens that it delivers count as inexact. They then depend on which worker had which group, so that the same
    /// run again gives other weights; evaluation is by whoever is there. Needs a `training.correction`.
    pub other_numerics: OtherNumerics,
}

/// What becomes of a rollout worker with other numerics than the run's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OtherNumerics {
    /// It is sent away, with both numerics named.
    #[default]
    Refuse,
    /// It samples, and its tokens are corrected for.
    Correct,
}

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
    /// Draw only from tokens with one of so many largest logits; 0 draws from all. Default 0.
    pub top_k: u32,
    /// Draw only from the fewest most likely tokens of this probability, above 0 to 1. Default 1, from all.
    pub top_p: f64,
    /// Draw only from tokens at least so many times as likely as the most likely one, 0 to 1. Default 0, from all.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens that are in the context, above 0. Default 1, off.
    pub repetition_penalty: f64,
    /// Taken off the logit of a token that this assistant turn has already. Default 0.
    pub presence_penalty: f64,
    /// Taken off the logit of a token for each time that this assistant turn has it. Default 0.
    pub frequency_penalty: f64,
    /// Texts that end a turn, besides the model's own end tokens. Default none.
    pub stop: Vec<String>,
    /// Tools of the agent's own, by name ("calculator"); an environment may bring more. Default none.
    pub tools: Vec<String>,
    /// Tool calls before a reply, at most, in one turn of the dialogue. Default 8.
    pub max_tool_calls: u32,
    /// What a `stub://` model says, in turn; no model is loaded. Default one polite sentence.
    pub stub_responses: Vec<String>,
    /// A grammar that every assistant turn follows. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<ConstraintConfig>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            r#type: "chat".into(),
            system_prompt: None,
            max_new_tokens: 512,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            constraint: None,
            stop: Vec::new(),
            tools: Vec::new(),
            max_tool_calls: 8,
            stub_responses: vec!["Thank you for asking. How can I help?".into()],
        }
    }
}

/// A grammar of text. An end token may come where the text is complete; a turn that is cut by its budget need not be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ConstraintConfig {
    /// JSON that a JSON Schema describes; its objects' keys come in the schema's order.
    JsonSchema {
        /// The schema, as JSON text; or `file`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        schema: Option<String>,
        /// File with the schema; relative to the configuration's folder.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<PathBuf>,
    },
    /// Text that a regular expression matches as a whole.
    Regex {
        /// The expression, in the syntax of Rust's `regex` without anchors and lazy repetitions.
        pattern: String,
    },
    /// Text of a context-free grammar in llguidance's variant of Lark.
    Lark {
        /// The grammar, with a rule `start`; or `file`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grammar: Option<String>,
        /// File with the grammar; relative to the configuration's folder.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<PathBuf>,
    },
}

impl ConstraintConfig {
    /// What it is, for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::JsonSchema { .. } => "JSON schema",
            Self::Regex { .. } => "regular expression",
            Self::Lark { .. } => "grammar",
        }
    }
}

impl AgentConfig {
    /// The first key by which tokens are drawn from another distribution than the policy's own at the temperature.
    #[must_use]
    pub fn narrowed(&self) -> Option<&'static str> {
        let keys = [
            ("constraint", self.constraint.is_some()),
            ("top_k", self.top_k != 0),
            ("top_p", self.top_p != 1.0),
            ("min_p", self.min_p != 0.0),
            ("repetition_penalty", self.repetition_penalty != 1.0),
            ("presence_penalty", self.presence_penalty != 0.0),
            ("frequency_penalty", self.frequency_penalty != 0.0),
        ];
        keys.into_iter().find_map(|(key, said)| said.then_some(key))
    }

    /// How training samples are drawn.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the engine computes in f32; all of these are small numbers")]
    pub fn sampling(&self) -> SamplingParams {
        SamplingParams {
            top_k: self.top_k,
            top_p: self.top_p as f32,
            min_p: self.min_p as f32,
            repetition_penalty: self.repetition_penalty as f32,
            presence_penalty: self.presence_penalty as f32,
            frequency_penalty: self.frequency_penalty as f32,
            ..SamplingParams::plain(self.temperature as f32, self.max_new_tokens)
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
