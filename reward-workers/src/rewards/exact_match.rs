//! `exact_match`: the completion is the answer.
use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use crate::text::Scope;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Keys of `type = "exact_match"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExactMatchConfig {
    /// Column of the data row with the answer: a string, a number, or a list of accepted answers. Default `answer`.
    pub answer: String,
    /// Letter case does not count. Default false.
    pub ignore_case: bool,
    /// White space at both ends does not count and runs of it inside are one blank. Default true.
    pub trim: bool,
    /// Which assistant turns are read. Default `last`.
    pub scope: Scope,
}

impl Default for ExactMatchConfig {
    fn default() -> Self {
        Self { answer: "answer".to_owned(), ignore_case: false, trim: true, scope: Scope::Last }
    }
}

/// The rule.
#[derive(Debug)]
pub struct ExactMatch {
    config: ExactMatchConfig,
}

impl ExactMatch {
    /// With these keys.
    #[must_use]
    pub fn new(config: ExactMatchConfig) -> Self {
        Self { config }
    }

    fn normal(&self, text: &str) -> String {
        let text = if self.config.trim { text.split_whitespace().collect::<Vec<_>>().join(" ") } else { text.to_owned() };
        if self.config.ignore_case { text.to_lowercase() } else { text }
    }
}

impl Rule for ExactMatch {
    fn grade(&self, input: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let accepted = accepted(&self.config.answer, input)?;
        let said = self.normal(&self.config.scope.text(sample));
        Ok(Grade::pass(accepted.iter().any(|answer| self.normal(answer) == said)))
    }
}

/// The accepted answers of a column: one text, one number, or a list of them.
pub(super) fn accepted(column: &str, input: &ScoreInput) -> Result<Vec<String>, String> {
    let value = input.column(column)?;
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        other => Err(format!("column {column:?} holds {other}: expected a string, a number or a list of them")),
    };
    match value {
        Value::Array(list) if list.is_empty() => Err(format!("column {column:?} is an empty list: no answer would be right")),
        Value::Array(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::grade;
    use serde_json::json;

    #[test]
    fn matches_strings_numbers_and_lists() {
        let rule = ExactMatch::new(ExactMatchConfig::default());
        assert_eq!(grade(&rule, json!({"answer": "New  York"}), " New York\n"), Ok(1.0));
        assert_eq!(grade(&rule, json!({"answer": "new york"}), "New York"), Ok(0.0));
        assert_eq!(grade(&rule, json!({"answer": 42}), "42"), Ok(1.0));
        assert_eq!(grade(&rule, json!({"answer": ["a", "b"]}), "b"), Ok(1.0));
        let loose = ExactMatch::new(ExactMatchConfig { ignore_case: true, ..Default::default() });
        assert_eq!(grade(&loose, json!({"answer": "new york"}), "New York"), Ok(1.0));
    }

    #[test]
    fn a_row_without_an_answer_is_an_error_that_lists_its_columns() {
        let rule = ExactMatch::new(ExactMatchConfig::default());
        let why = grade(&rule, json!({"prompt": "p", "result": "r"}), "x").unwrap_err();
        assert!(why.contains("no column \"answer\" (it has prompt, result)"), "{why}");
        assert!(grade(&rule, json!({"answer": []}), "x").is_err());
        assert!(grade(&rule, json!({"answer": {"a": 1}}), "x").is_err());
    }
}
