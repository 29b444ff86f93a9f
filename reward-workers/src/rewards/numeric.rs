//! `numeric`: the number the completion gives is the answer, within a tolerance.
use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use crate::text::Scope;
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Which number of a completion is its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// The last one.
    #[default]
    Last,
    /// The first one.
    First,
    /// The number in the last `\boxed{..}`.
    Boxed,
    /// The whole completion must be one number.
    Whole,
}

/// Keys of `type = "numeric"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NumericConfig {
    /// Column with the answer: a number, or a text whose number is after `####` (GSM8K) or its last one. Default `answer`.
    pub answer: String,
    /// Allowed absolute difference. Default 1e-6.
    pub tolerance: f64,
    /// Allowed difference relative to the answer. Default 0.
    pub relative_tolerance: f64,
    /// Which number of the completion counts. Default `last`.
    pub extract: Extract,
    /// Only the text after the last occurrence of this marker is searched (`####`, `Answer:`). Default: all of it.
    pub after: Option<String>,
    /// Which assistant turns are read. Default `last`.
    pub scope: Scope,
}

impl Default for NumericConfig {
    fn default() -> Self {
        Self {
            answer: "answer".to_owned(),
            tolerance: 1e-6,
            relative_tolerance: 0.0,
            extract: Extract::Last,
            after: None,
            scope: Scope::Last,
        }
    }
}

/// The rule.
#[derive(Debug)]
pub struct Numeric {
    config: NumericConfig,
    numbers: Numbers,
}

impl Numeric {
    /// With these keys. Errors where a tolerance is negative or not finite.
    pub fn new(config: NumericConfig) -> Result<Self, String> {
        for (key, value) in [("tolerance", config.tolerance), ("relative_tolerance", config.relative_tolerance)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("{key} = {value}: expected a number of at least 0"));
            }
        }
        Ok(Self { config, numbers: Numbers::new()? })
    }

    fn truth(&self, input: &ScoreInput) -> Result<f64, String> {
        let column = &self.config.answer;
        let value = input.column(column)?;
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => self.numbers.find(text.rsplit("####").next().unwrap_or(text)).last().copied(),
            _ => None,
        };
        number.ok_or_else(|| format!("column {column:?} holds {value}, in which there is no number"))
    }

    fn said(&self, text: &str) -> Option<f64> {
        let text = match &self.config.after {
            Some(marker) => &text[text.rfind(marker.as_str())? + marker.len()..],
            None => text,
        };
        match self.config.extract {
            Extract::Last => self.numbers.find(text).last().copied(),
            Extract::First => self.numbers.find(text).first().copied(),
            Extract::Whole => self.numbers.whole(text),
            Extract::Boxed => {
                let (_, rest) = text.rsplit_once(r"\boxed{")?;
                self.numbers.find(rest.split_once('}')?.0).last().copied()
            }
        }
    }
}

impl Rule for Numeric {
    fn grade(&self, input: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let truth = self.truth(input)?;
        let said = self.said(&self.config.scope.text(sample));
        let allowed = self.config.tolerance.max(self.config.relative_tolerance * truth.abs());
        let right = said.is_some_and(|said| (said - truth).abs() <= allowed);
        Ok(Grade::pass(right).with("answered", f64::from(u8::from(said.is_some()))))
    }
}

/// Finds numbers in prose: `1,234.5`, `-3`, `2e5`, `.5`, `3/4`; `$` and `%` around them do not matter.
#[derive(Debug)]
struct Numbers {
    pattern: Regex,
}

impl Numbers {
    fn new() -> Result<Self, String> {
        let pattern = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?(?:/\d+)?";
        Ok(Self { pattern: Regex::new(pattern).map_err(|e| e.to_string())? })
    }

    fn find(&self, text: &str) -> Vec<f64> {
        self.pattern.find_iter(text).filter_map(|m| value(m.as_str(), &text[..m.start()])).collect()
    }

    fn whole(&self, text: &str) -> Option<f64> {
        let text = text.trim();
        let found = self.pattern.find(text)?;
        let sign_only = matches!(&text[..found.start()], "" | "-" | "+" | "\u{2212}");
        (sign_only && found.end() == text.len()).then(|| value(found.as_str(), &text[..found.start()]))?
    }
}

/// A matched number with the sign that stands right before it. A hyphen inside a word or a range (`5-3`) is no sign.
fn value(digits: &str, before: &str) -> Option<f64> {
    let (number, divisor) = match digits.split_once('/') {
        Some((a, b)) => (a, b.parse::<f64>().ok()?),
        None => (digits, 1.0),
    };
    let magnitude: f64 = number.replace(',', "").parse::<f64>().ok()? / divisor;
    let mut left = before.chars().rev().skip_while(|c| *c == '$');
    let signed = matches!(left.next(), Some('-' | '\u{2212}')) && !left.next().is_some_and(char::is_alphanumeric);
    let value = if signed { -magnitude } else { magnitude };
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::grade;
    use proptest::prelude::*;
    use serde_json::json;

    fn rule(config: Value) -> Numeric {
        Numeric::new(serde_json::from_value(config).unwrap()).unwrap()
    }

    #[test]
    fn finds_numbers_in_prose() {
        let numbers = Numbers::new().unwrap();
        for (text, want) in [
            ("It costs $1,234.50 today.", vec![1234.5]),
            ("from 5-3 to -2 and \u{2212}7", vec![5.0, 3.0, -2.0, -7.0]),
            ("3/4 of .5 is 3.75e-1", vec![0.75, 0.5, 0.375]),
            ("-$20, 50%", vec![-20.0, 50.0]),
            ("12,34 1e999 5/0", vec![12.0, 34.0]),
            ("none", vec![]),
        ] {
            assert_eq!(numbers.find(text), want, "{text}");
        }
        assert_eq!(numbers.whole(" -12 "), Some(-12.0));
        assert_eq!(numbers.whole("12 apples"), None);
    }

    #[test]
    fn grades_with_tolerance_and_markers() {
        let last = rule(json!({}));
        assert_eq!(grade(&last, json!({"answer": 12}), "3 times 4 is 12."), Ok(1.0));
        assert_eq!(grade(&last, json!({"answer": "work #### 1,200"}), "so 1200"), Ok(1.0));
        assert_eq!(grade(&last, json!({"answer": 12}), "I cannot say"), Ok(0.0));
        assert!(grade(&last, json!({"answer": "twelve"}), "12").unwrap_err().contains("no number"));
        let marked = rule(json!({"after": "Answer:", "extract": "first"}));
        assert_eq!(grade(&marked, json!({"answer": 7}), "5 Answer: 7 of 9"), Ok(1.0));
        assert_eq!(grade(&marked, json!({"answer": 7}), "7"), Ok(0.0));
        assert_eq!(grade(&rule(json!({"extract": "boxed"})), json!({"answer": 7}), r"\boxed{7} or 8"), Ok(1.0));
        assert_eq!(grade(&rule(json!({"relative_tolerance": 0.01})), json!({"answer": 200}), "201.9"), Ok(1.0));
        assert!(Numeric::new(NumericConfig { tolerance: -1.0, ..Default::default() }).is_err());
    }

    proptest! {
        #[test]
        fn any_number_is_found_again(n in -1_000_000_000i64..1_000_000_000, tail in "[a-z .!]{0,12}") {
            let rule = rule(json!({}));
            prop_assert_eq!(grade(&rule, json!({"answer": n}), &format!("it is {n} {tail}")), Ok(1.0));
            prop_assert_eq!(grade(&rule, json!({"answer": n}), &format!("it is {} {tail}", n + 1)), Ok(0.0));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            for extract in ["last", "first", "boxed", "whole"] {
                let graded = grade(&rule(json!({"extract": extract, "after": "a"})), json!({"answer": 1}), &text);
                prop_assert!(graded.is_ok());
            }
        }
    }
}
