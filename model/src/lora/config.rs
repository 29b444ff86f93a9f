//! The `[model.lora]` section of the configuration.
use super::Target;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Train low-rank adapters beside a frozen model. Defaults are PEFT's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Width of the bottleneck (PEFT's `r`), 1 or more.
    pub rank: u32,
    /// The adapters' product is scaled by `alpha / rank` (PEFT's `lora_alpha`).
    pub alpha: f64,
    /// Probability that an input of an adapter is dropped in the learner's training pass (PEFT's `lora_dropout`), 0 to below
    /// 1. Above 0 the training pass no longer gives the log-probs that were sampled: see docs/algorithms.md.
    pub dropout: f64,
    /// Modules that get an adapter in every block: `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`,
    /// `down_proj`, or `all-linear` for all of them.
    pub target_modules: Vec<String>,
    /// A directory in PEFT's layout to start from; its rank, alpha and modules must be these. Empty: fresh adapters.
    pub adapter: String,
}

/// A value that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("model.lora.{key} = {value}: {problem}")]
pub struct LoraConfigError {
    /// The setting.
    pub key: &'static str,
    /// What it says.
    pub value: String,
    /// What would be right.
    pub problem: &'static str,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let target_modules = [Target::Query, Target::Value].map(|t| t.name().to_owned()).into();
        Self { rank: 8, alpha: 8.0, dropout: 0.0, target_modules, adapter: String::new() }
    }
}

impl LoraConfig {
    /// Refuses numbers that cannot be.
    pub fn check(&self) -> Result<(), LoraConfigError> {
        let bad = |key, value: String, problem| Err(LoraConfigError { key, value, problem });
        if self.rank == 0 || self.rank > 4096 {
            return bad("rank", self.rank.to_string(), "must be 1 to 4096");
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return bad("alpha", self.alpha.to_string(), "must be a number above 0");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("dropout", self.dropout.to_string(), "must be 0 or more and below 1");
        }
        match self.targets() {
            Ok(_) => Ok(()),
            Err((value, _)) => bad("target_modules", value, "must be names such as q_proj and v_proj, or all-linear"),
        }
    }

    /// The modules in forward order; else the one that is not known.
    pub(super) fn targets(&self) -> Result<Vec<Target>, (String, String)> {
        let known = Target::ALL.map(Target::name).join(", ");
        if self.target_modules.is_empty() {
            return Err((String::new(), format!("name at least one of {known}, or all-linear")));
        }
        if self.target_modules.iter().any(|name| name == "all-linear") {
            return Ok(Target::ALL.to_vec());
        }
        if let Some(other) = self.target_modules.iter().find(|name| Target::ALL.iter().all(|t| t.name() != **name)) {
            return Err((other.clone(), format!("there are {known} and all-linear")));
        }
        Ok(Target::ALL.into_iter().filter(|t| self.target_modules.iter().any(|name| name == t.name())).collect())
    }
}
