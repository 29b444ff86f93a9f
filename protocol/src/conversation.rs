//! Turns of a dialogue as people and graders see them. The learner never reads text: see [`crate::Trajectory`].
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnRole {
    /// Instructions.
    System,
    /// The customer, the prompt.
    User,
    /// The policy; "agent" is read as an alias.
    #[serde(alias = "agent")]
    Assistant,
    /// A tool's answer; masked out of the loss.
    Tool,
}

/// A call that the policy made.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct ToolCall {
    /// Tool's name.
    pub name: String,
    /// Arguments as the policy wrote them.
    pub arguments: String,
}

/// What a tool answered.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct ToolResult {
    /// Tool's name.
    pub name: String,
    /// Text put into the context.
    pub content: String,
    /// Whether the call failed.
    pub is_error: bool,
}

/// One turn. `start..start + len` are its tokens in the trajectory (0, 0 where the text has none of its own).
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct Turn {
    /// Who spoke; `speaker` is read as an alias.
    #[serde(alias = "speaker")]
    pub role: TurnRole,
    /// Text; `message` is read as an alias.
    #[serde(alias = "message")]
    pub content: String,
    /// First token.
    #[serde(default)]
    pub start: u32,
    /// Number of tokens.
    #[serde(default)]
    pub len: u32,
    /// Per-turn reward, where the environment gives one.
    #[serde(default)]
    pub reward: Option<f64>,
    /// Calls made in this turn.
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    /// Results shown in this turn.
    #[serde(default)]
    pub tool_results: Vec<ToolResult>,
}

impl Turn {
    /// A turn of plain text.
    #[must_use]
    pub fn text(role: TurnRole, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), start: 0, len: 0, reward: None, tool_calls: Vec::new(), tool_results: Vec::new() }
    }
}
