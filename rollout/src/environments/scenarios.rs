//! A scripted user: the turns of `user_responses` in order, the user first. A goodbye of either side ends the episode.
use super::{Environment, Episode, Observation, object};
use crate::dataset::read_rows;
use crate::{EnvironmentConfig, RolloutError};
use async_trait::async_trait;
use cohort_engine::DrawKey;
use cohort_protocol::{FinishReason, SampledItem, Turn, TurnRole};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;

/// A row of a scenario file. Further columns are kept for the reward.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Scenario {
    /// Name of the scenario.
    pub id: Value,
    /// What it is about.
    #[serde(default)]
    pub topic: Option<String>,
    /// What the agent knows beforehand.
    #[serde(default)]
    pub context: Option<Value>,
    /// What the user wants.
    #[serde(default)]
    pub user_goal: Option<String>,
    /// What the user says, in order.
    #[serde(alias = "user_turns")]
    pub user_responses: Vec<String>,
    /// Instructions that replace the agent's own.
    #[serde(default)]
    pub system_prompt: Option<String>,
    /// Difficulty, category.
    #[serde(default)]
    pub metadata: Option<Value>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Scenarios {
    max_turns: u32,
    goodbye: Arc<[String]>,
}

impl Scenarios {
    /// From its section.
    #[must_use]
    pub fn new(config: &EnvironmentConfig) -> Self {
        Self { max_turns: config.max_turns, goodbye: config.goodbye.iter().map(|p| words(p)).collect() }
    }
}

/// Reads and checks a file of scenarios.
pub fn rows(path: &Path) -> Result<Vec<Value>, RolloutError> {
    let place = path.display().to_string();
    let rows = read_rows(path)?;
    for (i, row) in rows.iter().enumerate() {
        scenario(row.clone()).map_err(|problem| RolloutError::Data { place: format!("{place}: scenario {}", i + 1), problem })?;
    }
    Ok(rows)
}

fn scenario(row: Value) -> Result<Scenario, String> {
    let scenario: Scenario = serde_json::from_value(row).map_err(|e| e.to_string())?;
    match scenario.user_responses.first() {
        None => Err(format!("{}: \"user_responses\" is empty; the user speaks first", scenario.id)),
        Some(first) if first.trim().is_empty() => Err(format!("{}: the user's first turn is empty", scenario.id)),
        Some(_) => Ok(scenario),
    }
}

#[async_trait]
impl Environment for Scenarios {
    async fn reset(&self, item: &SampledItem, _key: DrawKey) -> Result<Box<dyn Episode>, RolloutError> {
        let scenario = scenario(Value::Object(object(item)?)).map_err(|problem| RolloutError::Item { row: item.row, problem })?;
        Ok(Box::new(Conversation { scenario, said: 1, goodbye: self.goodbye.clone(), completed: false }))
    }

    fn max_turns(&self) -> u32 {
        self.max_turns
    }
}

struct Conversation {
    scenario: Scenario,
    /// User turns in the dialogue.
    said: usize,
    goodbye: Arc<[String]>,
    completed: bool,
}

impl Conversation {
    fn is_goodbye(&self, text: &str) -> bool {
        let text = words(text);
        self.goodbye.iter().any(|phrase| text.contains(phrase.as_str()))
    }
}

#[async_trait]
impl Episode for Conversation {
    fn opening(&self) -> Vec<Turn> {
        let system = self.scenario.system_prompt.iter().map(|text| Turn::text(TurnRole::System, text.clone()));
        let user = self.scenario.user_responses.first().map(|text| Turn::text(TurnRole::User, text.clone()));
        system.chain(user).collect()
    }

    async fn step(&mut self, turn: &Turn) -> Result<Observation, RolloutError> {
        let next = self.scenario.user_responses.get(self.said).filter(|_| !self.is_goodbye(&turn.content));
        let Some(next) = next.cloned() else {
            self.completed = true;
            return Ok(Observation::done());
        };
        self.said += 1;
        self.completed = self.is_goodbye(&next);
        Ok(Observation { turns: vec![Turn::text(TurnRole::User, next)], done: self.completed, reward: None })
    }

    fn context(&self, _turns: &[Turn], finish: FinishReason) -> Map<String, Value> {
        let status = match finish {
            FinishReason::Stop if self.completed => "completed",
            FinishReason::MaxTurns => "timeout",
            FinishReason::Stop | FinishReason::Length | FinishReason::Context => "failed",
        };
        let s = &self.scenario;
        let fields = [
            ("scenario_id", s.id.clone()),
            ("topic", json!(s.topic)),
            ("context", json!(s.context)),
            ("user_goal", json!(s.user_goal)),
            ("metadata", json!(s.metadata)),
            ("status", json!(status)),
        ];
        fields.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.to_owned(), v)).collect()
    }
}

/// Lower-case words, each with a space before and after it.
fn words(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut out = String::from(" ");
    for word in lower.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty()) {
        out.push_str(word);
        out.push(' ');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn episode(json: &str) -> Box<dyn Episode> {
        let environment = Scenarios::new(&EnvironmentConfig::default());
        environment.reset(&SampledItem { row: 0, json: json.into() }, DrawKey::default()).await.unwrap()
    }

    fn reply(text: &str) -> Turn {
        Turn::text(TurnRole::Assistant, text)
    }

    #[tokio::test]
    async fn the_user_speaks_first_and_in_order() {
        let mut e = episode(r#"{"id": "s1", "topic": "t", "user_responses": ["one", "two"], "system_prompt": "be kind"}"#).await;
        let opening = e.opening();
        assert_eq!((opening[0].content.as_str(), opening[1].content.as_str()), ("be kind", "one"));
        let seen = e.step(&reply("hm")).await.unwrap();
        assert_eq!((seen.turns[0].content.as_str(), seen.done), ("two", false));
        assert!(e.step(&reply("hm")).await.unwrap().done);
        assert_eq!(e.context(&[], FinishReason::Stop)["status"], "completed");
    }

    #[tokio::test]
    async fn a_goodbye_of_either_side_ends_it() {
        let script = r#"{"id": 1, "user_turns": ["hi", "ok, BYE!", "never said"]}"#;
        let mut e = episode(script).await;
        assert!(e.step(&reply("Goodbye.")).await.unwrap().done);
        let mut e = episode(script).await;
        assert_eq!(e.context(&[], FinishReason::MaxTurns)["status"], "timeout");
        let seen = e.step(&reply("the bypass byelaw")).await.unwrap();
        assert!(seen.done && seen.turns.len() == 1);
    }

    #[test]
    fn scenarios_without_a_user_are_refused() {
        for (row, want) in
            [(r#"{"id": "x"}"#, "user_responses"), (r#"{"id": "x", "user_responses": []}"#, "the user speaks first")]
        {
            let error = scenario(serde_json::from_str(row).unwrap()).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
