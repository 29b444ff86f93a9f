//! `format`: verifiable instructions that stand in the data row, in the manner of IFEval (Zhou et al. 2023,
//! arXiv:2311.07911). A row carries `constraints = [{"kind": "lowercase"}, {"kind": "ends_with", "phrase": ".."}]`.
//!
//! Length alone earns nothing: a completion of fewer than `min_words` words scores 0, constraints on length count only
//! where a constraint of another kind holds, and a row with nothing but length constraints is refused.
mod constraint;

pub use constraint::Constraint;

use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use crate::text::{Scope, words};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many constraints must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// The fraction that holds is the score.
    #[default]
    Fraction,
    /// 1 where all hold, else 0.
    All,
}

/// Keys of `type = "format"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FormatConfig {
    /// Column of the data row with the list of constraints. Default `constraints`.
    pub column: String,
    /// How many constraints must hold. Default `fraction`.
    pub need: Need,
    /// A completion of fewer words scores 0, so that falling silent is no way to obey. Default 3.
    pub min_words: u64,
    /// Which assistant turns are read. Default `last`.
    pub scope: Scope,
}

impl Default for FormatConfig {
    fn default() -> Self {
        Self { column: "constraints".to_owned(), need: Need::Fraction, min_words: 3, scope: Scope::Last }
    }
}

/// The rule. Breakdown: `all` (1 where every constraint holds) and the share of each kind that stands in the row.
#[derive(Debug)]
pub struct Format {
    config: FormatConfig,
}

impl Format {
    /// With these keys.
    #[must_use]
    pub fn new(config: FormatConfig) -> Self {
        Self { config }
    }

    fn constraints(&self, input: &ScoreInput) -> Result<Vec<Constraint>, String> {
        let column = &self.config.column;
        let list = input.column(column)?.as_array().ok_or_else(|| format!("column {column:?} is not a list of constraints"))?;
        let mut constraints = Vec::with_capacity(list.len());
        for (i, value) in list.iter().enumerate() {
            constraints.push(Constraint::read(value).map_err(|why| format!("column {column:?}, constraint {i}: {why}"))?);
        }
        if constraints.iter().all(Constraint::is_length) {
            return Err(format!("column {column:?} has only constraints on length (or none): add one of another kind"));
        }
        Ok(constraints)
    }
}

impl Rule for Format {
    fn grade(&self, input: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let constraints = self.constraints(input)?;
        let text = self.config.scope.text(sample);
        let spoke = words(&text).count() as u64 >= self.config.min_words;
        let held: Vec<bool> = constraints.iter().map(|c| spoke && c.holds(text.trim())).collect();
        let earns_length = constraints.iter().zip(&held).any(|(c, held)| *held && !c.is_length());
        let share = |counted: &dyn Fn(&Constraint) -> bool| {
            let of: Vec<bool> = constraints.iter().zip(&held).filter(|(c, _)| counted(c)).map(|(_, h)| *h).collect();
            of.iter().filter(|h| **h).count() as f64 / of.len() as f64
        };
        let all = f64::from(u8::from(held.iter().all(|h| *h)));
        let score = match self.config.need {
            Need::All => all,
            Need::Fraction if earns_length => share(&|_| true),
            Need::Fraction => 0.0,
        };
        let mut grade = Grade::of(score).with("all", all);
        for constraint in &constraints {
            let kind = constraint.kind();
            if grade.breakdown.iter().all(|(name, _)| name != kind) {
                grade = grade.with(kind, share(&|c| c.kind() == kind));
            }
        }
        Ok(grade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::grade;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn row(constraints: Value) -> Value {
        json!({ "prompt": "p", "constraints": constraints })
    }

    #[test]
    fn scores_the_fraction_or_all() {
        let constraints = json!([{"kind": "lowercase"}, {"kind": "no_commas"}, {"kind": "ends_with", "phrase": "goodbye."}]);
        let (fraction, all) =
            (Format::new(FormatConfig::default()), Format::new(FormatConfig { need: Need::All, ..Default::default() }));
        for (text, want, every) in [
            ("all is well so goodbye.", 1.0, 1.0),
            ("All is well so goodbye.", 2.0 / 3.0, 0.0),
            ("All is well, so bye.", 0.0, 0.0),
        ] {
            assert_eq!(grade(&fraction, row(constraints.clone()), text), Ok(want), "{text}");
            assert_eq!(grade(&all, row(constraints.clone()), text), Ok(every), "{text}");
        }
    }

    #[test]
    fn length_alone_earns_nothing() {
        let rule = Format::new(FormatConfig::default());
        let constraints = row(json!([{"kind": "words", "max": 50}, {"kind": "sentences", "min": 1}, {"kind": "uppercase"}]));
        assert_eq!(grade(&rule, constraints.clone(), "some words of the right length."), Ok(0.0));
        assert_eq!(grade(&rule, constraints, "SOME WORDS THAT SHOUT."), Ok(1.0));
        let easy = row(json!([{"kind": "no_commas"}, {"kind": "lowercase"}]));
        assert_eq!(grade(&rule, easy.clone(), ""), Ok(0.0));
        assert_eq!(grade(&rule, easy, "ok"), Ok(0.0), "two letters are no answer");
        let why = grade(&rule, row(json!([{"kind": "words", "max": 50}])), "x").unwrap_err();
        assert!(why.contains("only constraints on length"), "{why}");
        assert!(grade(&rule, row(json!([])), "x").is_err());
    }

    #[test]
    fn a_bad_row_is_an_error_with_its_place() {
        let rule = Format::new(FormatConfig::default());
        let why = grade(&rule, row(json!([{"kind": "lowercase"}, {"kind": "rhymes"}])), "x").unwrap_err();
        assert!(why.contains("constraint 1") && why.contains("rhymes"), "{why}");
        assert!(grade(&rule, row(json!("lowercase")), "x").unwrap_err().contains("not a list"));
    }

    proptest! {
        #[test]
        fn appending_words_without_obeying_never_earns(words in proptest::collection::vec("[a-z]{1,8}", 0..80)) {
            let rule = Format::new(FormatConfig::default());
            let constraints = row(json!([{"kind": "words", "min": 5, "max": 60}, {"kind": "title"}, {"kind": "uppercase"}]));
            prop_assert_eq!(grade(&rule, constraints, &words.join(" ")), Ok(0.0));
        }
    }
}
