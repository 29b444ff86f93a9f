//! Single-turn prompts from a file: a row has `prompt` or `messages`, often `answer`, and further columns for the reward.
use super::{Environment, Episode, Observation, object};
use crate::dataset::read_rows;
use crate::{EnvironmentConfig, RolloutError};
use async_trait::async_trait;
use cohort_engine::DrawKey;
use cohort_protocol::{SampledItem, Turn, TurnRole};
use serde_json::{Map, Value};
use std::path::Path;

/// See the module.
#[derive(Debug, Clone)]
pub struct Prompts {
    max_turns: u32,
}

impl Prompts {
    /// From its section.
    #[must_use]
    pub fn new(config: &EnvironmentConfig) -> Self {
        Self { max_turns: config.max_turns }
    }
}

/// Reads and checks a file of prompts.
pub fn rows(path: &Path) -> Result<Vec<Value>, RolloutError> {
    let place = path.display().to_string();
    let rows = read_rows(path)?;
    for (i, row) in rows.iter().enumerate() {
        let checked = row.as_object().map_or_else(|| Err("it is not a JSON object".to_owned()), opening);
        checked.map_err(|problem| RolloutError::Data { place: format!("{place}: row {}", i + 1), problem })?;
    }
    Ok(rows)
}

/// The turns of a row.
fn opening(row: &Map<String, Value>) -> Result<Vec<Turn>, String> {
    let turns = match (row.get("prompt"), row.get("messages")) {
        (Some(Value::String(prompt)), None) => vec![Turn::text(TurnRole::User, prompt.clone())],
        (Some(_), None) => return Err("\"prompt\" is not a string".into()),
        (None, Some(messages)) => serde_json::from_value::<Vec<Turn>>(messages.clone())
            .map_err(|e| format!("\"messages\" is not a list of {{\"role\", \"content\"}}: {e}"))?,
        (Some(_), Some(_)) => return Err("it has both \"prompt\" and \"messages\"; one of them is needed".into()),
        (None, None) => {
            let columns: Vec<&str> = row.keys().map(String::as_str).collect();
            return Err(format!("it has neither \"prompt\" nor \"messages\" (columns: {})", columns.join(", ")));
        }
    };
    match turns.last() {
        None => Err("\"messages\" is empty".into()),
        Some(turn) if turn.role == TurnRole::Assistant => Err("the last message is the assistant's own".into()),
        Some(turn) if turn.content.trim().is_empty() => Err("the prompt is empty".into()),
        Some(_) => Ok(turns),
    }
}

#[async_trait]
impl Environment for Prompts {
    async fn reset(&self, item: &SampledItem, _key: DrawKey) -> Result<Box<dyn Episode>, RolloutError> {
        let opening = opening(&object(item)?).map_err(|problem| RolloutError::Item { row: item.row, problem })?;
        Ok(Box::new(Prompt { opening }))
    }

    fn max_turns(&self) -> u32 {
        self.max_turns
    }
}

struct Prompt {
    opening: Vec<Turn>,
}

#[async_trait]
impl Episode for Prompt {
    fn opening(&self) -> Vec<Turn> {
        self.opening.clone()
    }

    async fn step(&mut self, _turn: &Turn) -> Result<Observation, RolloutError> {
        Ok(Observation::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Vec<Value>, RolloutError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jsonl");
        std::fs::write(&path, text).unwrap();
        rows(&path)
    }

    #[test]
    fn rows_are_checked_when_the_file_is_opened() {
        check("{\"prompt\": \"a\", \"answer\": 3}\n{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"speaker\": \"user\", \"message\": \"u\"}]}").unwrap();
        for (text, want) in [
            (
                "{\"prompt\": \"a\"}\n{\"question\": \"a\"}",
                "row 2: it has neither \"prompt\" nor \"messages\" (columns: question)",
            ),
            ("{\"prompt\": 3}", "\"prompt\" is not a string"),
            ("{\"prompt\": \" \"}", "the prompt is empty"),
            ("{\"messages\": []}", "\"messages\" is empty"),
            ("{\"messages\": [{\"role\": \"robot\", \"content\": \"s\"}]}", "unknown variant"),
            ("{\"messages\": [{\"role\": \"agent\", \"content\": \"s\"}]}", "the assistant's own"),
            ("", "no rows"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
