//! `contains`: phrases that must, or must not, stand in the completion.
use super::exact_match::accepted;
use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use crate::text::{Scope, count_phrase};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What counts as enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// 1 where every phrase is there.
    #[default]
    All,
    /// 1 where one phrase is there.
    Any,
    /// The fraction that is there.
    Fraction,
    /// 1 where no phrase is there.
    None,
}

/// Keys of `type = "contains"`. One of `phrases` and `column` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContainsConfig {
    /// The phrases. Default: none.
    pub phrases: Vec<String>,
    /// Column of the data row with the phrase or the list of phrases. Default: none.
    pub column: Option<String>,
    /// What counts as enough. Default `all`.
    pub need: Need,
    /// Phrases must stand as whole words, letter case ignored; otherwise any exact occurrence counts. Default true.
    pub whole_words: bool,
    /// Which assistant turns are read. Default `last`.
    pub scope: Scope,
}

impl Default for ContainsConfig {
    fn default() -> Self {
        Self { phrases: Vec::new(), column: None, need: Need::All, whole_words: true, scope: Scope::Last }
    }
}

/// The rule.
#[derive(Debug)]
pub struct Contains {
    config: ContainsConfig,
}

impl Contains {
    /// With these keys.
    pub fn new(config: ContainsConfig) -> Result<Self, String> {
        if config.phrases.is_empty() != config.column.is_some() {
            return Err("give one of phrases = [\"..\"] and column = \"..\"".to_owned());
        }
        if config.phrases.iter().any(|phrase| phrase.trim().is_empty()) {
            return Err("phrases holds an empty phrase, which every text contains: remove it".to_owned());
        }
        Ok(Self { config })
    }
}

impl Rule for Contains {
    fn grade(&self, input: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let phrases = match &self.config.column {
            Some(column) => accepted(column, input)?,
            None => self.config.phrases.clone(),
        };
        let text = self.config.scope.text(sample);
        let whole = self.config.whole_words;
        let found = |phrase: &&String| if whole { count_phrase(&text, phrase) > 0 } else { text.contains(phrase.as_str()) };
        let (hits, total) = (phrases.iter().filter(found).count(), phrases.len());
        let fraction = hits as f64 / total as f64;
        let score = match self.config.need {
            Need::All => f64::from(u8::from(hits == total)),
            Need::Any => f64::from(u8::from(hits > 0)),
            Need::Fraction => fraction,
            Need::None => f64::from(u8::from(hits == 0)),
        };
        Ok(Grade::of(score).with("found", fraction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::grade;
    use serde_json::json;

    #[test]
    fn needs_all_any_a_fraction_or_none() {
        for (need, text, want) in [
            ("all", "the Refund is on its way", 0.0),
            ("any", "the Refund is on its way", 1.0),
            ("fraction", "the Refund is on its way", 0.5),
            ("none", "the refunds, sorrymost", 1.0),
            ("all", "Sorry, a refund.", 1.0),
        ] {
            let config = json!({"phrases": ["refund", "sorry"], "need": need});
            let rule = Contains::new(serde_json::from_value(config).unwrap()).unwrap();
            assert_eq!(grade(&rule, json!({}), text), Ok(want), "{need} {text}");
        }
        let column = Contains::new(serde_json::from_value(json!({"column": "must", "whole_words": false})).unwrap()).unwrap();
        assert_eq!(grade(&column, json!({"must": "fun"}), "refund"), Ok(1.0));
        assert!(Contains::new(ContainsConfig::default()).is_err());
        assert!(Contains::new(ContainsConfig { phrases: vec![" ".into()], ..Default::default() }).is_err());
    }
}
