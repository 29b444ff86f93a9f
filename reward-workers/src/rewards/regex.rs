//! `regex`: a pattern matches, or what it captures is the answer.
use super::exact_match::accepted;
use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use crate::text::Scope;
use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keys of `type = "regex"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexConfig {
    /// The pattern, in the syntax of Rust's `regex` crate (linear time; no look-around, no back-references).
    pub pattern: String,
    /// The pattern must match the whole completion. Default false.
    #[serde(default)]
    pub full: bool,
    /// Column with the accepted answers: then the last match's first group (the whole match without groups) must be one
    /// of them. Default: none, a match is enough.
    #[serde(default)]
    pub answer: Option<String>,
    /// Letter case does not count. Default false.
    #[serde(default)]
    pub ignore_case: bool,
    /// Which assistant turns are read. Default `last`.
    #[serde(default)]
    pub scope: Scope,
}

/// The rule.
#[derive(Debug)]
pub struct RegexReward {
    config: RegexConfig,
    regex: Regex,
}

impl RegexReward {
    /// Compiles the pattern. Errors say where it is wrong.
    pub fn new(config: RegexConfig) -> Result<Self, String> {
        let pattern = if config.full { format!(r"\A(?:{})\z", config.pattern) } else { config.pattern.clone() };
        let regex = RegexBuilder::new(&pattern)
            .case_insensitive(config.ignore_case)
            .build()
            .map_err(|e| format!("pattern = {:?}: {e}", config.pattern))?;
        Ok(Self { config, regex })
    }
}

impl Rule for RegexReward {
    fn grade(&self, input: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let text = self.config.scope.text(sample);
        let Some(column) = &self.config.answer else {
            return Ok(Grade::pass(self.regex.is_match(&text)));
        };
        let accepted = accepted(column, input)?;
        let captured = self.regex.captures_iter(&text).last().and_then(|c| c.get(1).or_else(|| c.get(0)));
        let right = captured.is_some_and(|found| {
            let found = found.as_str().trim();
            accepted.iter().any(|answer| {
                let answer = answer.trim();
                answer == found || (self.config.ignore_case && answer.to_lowercase() == found.to_lowercase())
            })
        });
        Ok(Grade::pass(right).with("matched", f64::from(u8::from(captured.is_some()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::grade;
    use serde_json::json;

    fn rule(config: serde_json::Value) -> RegexReward {
        RegexReward::new(serde_json::from_value(config).unwrap()).unwrap()
    }

    #[test]
    fn matches_and_captures() {
        assert_eq!(grade(&rule(json!({"pattern": "^[a-z]+$"})), json!({}), "abc"), Ok(1.0));
        assert_eq!(grade(&rule(json!({"pattern": "a|b", "full": true})), json!({}), "ab"), Ok(0.0));
        let answer = rule(json!({"pattern": r"answer: (\w+)", "answer": "answer", "ignore_case": true}));
        assert_eq!(grade(&answer, json!({"answer": "blue"}), "Answer: red. No. Answer: Blue"), Ok(1.0));
        assert_eq!(grade(&answer, json!({"answer": "blue"}), "blue"), Ok(0.0));
        assert!(grade(&answer, json!({}), "Answer: blue").is_err());
    }

    #[test]
    fn a_bad_pattern_is_refused_when_it_is_built() {
        let why = RegexReward::new(serde_json::from_value(json!({"pattern": "(a"})).unwrap()).unwrap_err();
        assert!(why.contains("(a") && why.contains("unclosed group"), "{why}");
    }
}
