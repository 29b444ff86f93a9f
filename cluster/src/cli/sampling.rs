//! Flags that say what tokens are drawn from, shared by the subcommands that sample.
use super::{CliError, Exit};
use crate::config::tree::Value;
use cohort_engine::{Penalties, Truncation, sampler};
use cohort_rollout::ConstraintConfig;
use std::path::PathBuf;

/// Penalties, then temperature, then top-k, top-p, min-p.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct SamplingArgs {
    /// Draw only from tokens with one of the N largest logits; 0 is off
    #[arg(long, value_name = "N")]
    top_k: Option<u32>,
    /// Draw only from the fewest most likely tokens of probability P; 1 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draw only from tokens at least P times as likely as the most likely one; 0 is off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Divide positive and multiply negative logits of tokens of prompt and completion; 1 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f64>,
    /// Take this off the logits of tokens that the completion has already; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f64>,
    /// Take this off the logit of a token for each time that the completion has it; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f64>,
}

/// What every completion must follow.
#[derive(Debug, Clone, Default, clap::Args)]
#[group(multiple = false)]
pub(super) struct ConstraintArgs {
    /// Complete with JSON that the JSON Schema in FILE describes
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// Complete with text that this regular expression matches as a whole
    #[arg(long, value_name = "PATTERN")]
    regex: Option<String>,
    /// Complete with text of the grammar in FILE (llguidance's variant of Lark, rule `start`)
    #[arg(long, value_name = "FILE")]
    lark: Option<PathBuf>,
}

impl ConstraintArgs {
    /// As a section of the configuration.
    pub(super) fn config(&self) -> Option<ConstraintConfig> {
        let file = |path: &PathBuf| Some(path.clone());
        let schema = self.json_schema.as_ref().map(|path| ConstraintConfig::JsonSchema { schema: None, file: file(path) });
        let regex = || self.regex.clone().map(|pattern| ConstraintConfig::Regex { pattern });
        let lark = || self.lark.as_ref().map(|path| ConstraintConfig::Lark { grammar: None, file: file(path) });
        schema.or_else(regex).or_else(lark)
    }
}

impl SamplingArgs {
    /// As keys of `[agent]`, with the flag that says so.
    pub(super) fn flags(&self) -> Vec<(String, Value, String)> {
        let top_k = self.top_k.map(|k| ("top_k", Value::Integer(k.into()), format!("--top-k {k}")));
        let numbers = [
            ("top_p", "--top-p", self.top_p),
            ("min_p", "--min-p", self.min_p),
            ("repetition_penalty", "--repetition-penalty", self.repetition_penalty),
            ("presence_penalty", "--presence-penalty", self.presence_penalty),
            ("frequency_penalty", "--frequency-penalty", self.frequency_penalty),
        ];
        let numbers = numbers.into_iter().filter_map(|(key, flag, x)| x.map(|x| (key, Value::Float(x), format!("{flag} {x}"))));
        top_k.into_iter().chain(numbers).map(|(key, value, said)| (format!("agent.{key}"), value, said)).collect()
    }

    /// As the engine takes them.
    #[expect(clippy::cast_possible_truncation, reason = "the engine computes in f32; all of these are small numbers")]
    pub(super) fn limits(&self) -> Result<(Penalties, Truncation), CliError> {
        let or = |value: Option<f64>, off: f32| value.map_or(off, |x| x as f32);
        let penalties = Penalties {
            repetition: or(self.repetition_penalty, Penalties::OFF.repetition),
            presence: or(self.presence_penalty, Penalties::OFF.presence),
            frequency: or(self.frequency_penalty, Penalties::OFF.frequency),
        };
        let truncation = Truncation {
            top_k: self.top_k.unwrap_or(Truncation::OFF.top_k),
            top_p: or(self.top_p, Truncation::OFF.top_p),
            min_p: or(self.min_p, Truncation::OFF.min_p),
        };
        sampler::check(&penalties, &truncation).map_err(|bad| {
            let flag = bad.field.replace('_', "-");
            CliError::new(Exit::Usage, format!("--{flag} {}: {}", bad.value, bad.rule))
        })?;
        Ok((penalties, truncation))
    }
}
