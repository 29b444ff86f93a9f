//! `length`: a completion of the wanted length. A penalty or a tie-breaker beside a real reward, never a goal of its own.
use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use crate::text::{Scope, words};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Unicode characters.
    #[default]
    Chars,
    /// Words.
    Words,
}

/// Keys of `type = "length"`. At least one of `min` and `max` is given.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LengthConfig {
    /// Shortest length that scores 1, in `unit`. Default: none.
    pub min: Option<u64>,
    /// Longest length that scores 1, in `unit`. Default: none.
    pub max: Option<u64>,
    /// Over how many units outside the range the score falls from 1 to 0, linearly. Default 0: at once.
    pub slack: u64,
    /// What is counted. Default `chars`.
    pub unit: Unit,
    /// Which assistant turns are read. Default `last`.
    pub scope: Scope,
}

/// The rule.
#[derive(Debug)]
pub struct Length {
    config: LengthConfig,
}

impl Length {
    /// With these keys.
    pub fn new(config: LengthConfig) -> Result<Self, String> {
        match (config.min, config.max) {
            (None, None) => Err("give min, max or both".to_owned()),
            (Some(min), Some(max)) if min > max => Err(format!("min = {min} is over max = {max}")),
            _ => Ok(Self { config }),
        }
    }
}

impl Rule for Length {
    fn grade(&self, _: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let text = self.config.scope.text(sample);
        let length = match self.config.unit {
            Unit::Chars => text.chars().count(),
            Unit::Words => words(&text).count(),
        } as u64;
        let below = self.config.min.map_or(0, |min| min.saturating_sub(length));
        let above = self.config.max.map_or(0, |max| length.saturating_sub(max));
        let outside = below.max(above);
        let score = match (outside, self.config.slack) {
            (0, _) => 1.0,
            (_, 0) => 0.0,
            (outside, slack) => (1.0 - outside as f64 / slack as f64).max(0.0),
        };
        Ok(Grade::of(score).with("length", length as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::grade;
    use serde_json::json;

    #[test]
    fn falls_linearly_outside_the_range() {
        let rule = |config| Length::new(serde_json::from_value(config).unwrap());
        let words = rule(json!({"min": 2, "max": 4, "slack": 2, "unit": "words"})).unwrap();
        for (text, want) in [("", 0.0), ("a", 0.5), ("a b", 1.0), ("a b c d", 1.0), ("a b c d e", 0.5), ("a b c d e f g", 0.0)] {
            assert_eq!(grade(&words, json!({}), text), Ok(want), "{text}");
        }
        assert_eq!(grade(&rule(json!({"max": 3})).unwrap(), json!({}), "äöüß"), Ok(0.0));
        assert!(rule(json!({})).is_err() && rule(json!({"min": 5, "max": 4})).is_err());
    }
}
