//! The whole configuration: one section a concern, each defined by the crate that uses it.
use super::error::nearest;
use super::profile::Profile;
use super::sections::{ClusterConfig, LoggingConfig};
use super::tree::Node;
use cohort_learner::config::{CorrectionConfig, LossConfig, TrainingConfig};
use cohort_learner::training::Training;
use cohort_model::config::{EngineKind, ModelConfig};
use cohort_model::{DeviceKind, Quantization};
use cohort_reward_workers::{Registry, RewardError, RewardsConfig};
use cohort_rollout::{AgentConfig, EnvironmentConfig, OtherNumerics, RolloutConfig, RolloutError, registry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tracing_subscriber::EnvFilter;

/// The configuration of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Defaults under all other values.
    pub profile: Profile,
    /// Which model is trained, and what computes it.
    pub model: ModelConfig,
    /// What turns a dialogue into prompts and completions.
    pub agent: AgentConfig,
    /// How the policy is computed where it samples.
    pub rollout: RolloutConfig,
    /// Where prompts come from and what answers the agent.
    pub environment: EnvironmentConfig,
    /// How the policy is trained.
    pub training: TrainingConfig,
    /// How a completion is graded.
    pub rewards: RewardsConfig,
    /// What is written about a run besides its metrics.
    pub logging: LoggingConfig,
    /// How many workers run where, and what they may use.
    pub cluster: ClusterConfig,
}

impl Config {
    /// Makes what a part reads relative to its configuration file absolute.
    pub(super) fn finish(&mut self, tree: &Node) {
        let origin = tree.get(&["rewards".to_owned(), "parts".to_owned()]).map(|node| node.origin.folder().cloned());
        let here = || std::path::absolute(".").unwrap_or_else(|_| Path::new(".").to_owned());
        self.rewards.resolve_paths(&origin.flatten().unwrap_or_else(here));
    }

    /// What training asks of the sections together: the path of the first bad value, and why it is bad.
    pub(super) fn check_training(&self) -> Result<(), (String, String)> {
        let (ranks, shards) = (self.cluster.learner.get(), self.training.logical_shards);
        if !cohort_learner::shards::admits(shards as usize, ranks.into()) {
            let why = format!(
                "{ranks} learner ranks cannot share {shards} logical shards to the same bits: training.logical_shards must be \
                 cluster.learner times 1, 2, 4, ..; set training.logical_shards = {ranks} (it is part of the run's numerics)"
            );
            return Err(("cluster.learner".to_owned(), why));
        }
        if self.training.shard_optimizer && ranks == 1 {
            let why = "has no effect with one learner rank: remove it, or set cluster.learner";
            return Err(("training.shard_optimizer".to_owned(), why.to_owned()));
        }
        let corrects = !matches!(self.training.correction, CorrectionConfig::None {});
        // Cross-entropy reads no ratio: there is nothing to correct.
        let reads_ratio = !matches!(self.training.loss, LossConfig::Sft {});
        if !reads_ratio || corrects {
            return Ok(());
        }
        if self.rollout.other_numerics == OtherNumerics::Correct {
            let why = "lets samplers in whose log-probs are not the policy's own, for which training must correct: set \
                       training.correction.type to \"tis\" or \"mis\", or leave the key out";
            return Err(("rollout.other_numerics".to_owned(), why.to_owned()));
        }
        let quantized = (self.rollout.quantization != Quantization::None).then(|| "rollout.quantization".to_owned());
        let Some(key) = quantized.or_else(|| self.agent.narrowed().map(|key| format!("agent.{key}"))) else { return Ok(()) };
        let why = "draws tokens from another distribution than the policy's own, for which training must correct: set \
                   training.correction.type to \"tis\" or \"mis\", or leave the key out";
        Err((key, why.to_owned()))
    }

    /// What computes where tokens are sampled: the path of the first bad value, and why it is bad.
    pub(crate) fn check_engine(&self) -> Result<(), (String, String)> {
        self.model.check().map_err(|error| ("model".to_owned(), error.to_string()))?;
        self.check_quantization()
    }

    fn check_quantization(&self) -> Result<(), (String, String)> {
        let problem = match &self.model {
            _ if self.rollout.quantization == Quantization::None => return Ok(()),
            model if model.path.starts_with("stub://") => "needs a model that computes: a stub's answers are scripted",
            model if model.engine != EngineKind::Native => "needs model.engine = \"native\": the candle engine samples in f32",
            _ => return Ok(()),
        };
        Err(("rollout.quantization".to_owned(), problem.to_owned()))
    }

    /// What the sections say about themselves: the path of the first bad value, and why it is bad.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        self.cluster.check()?;
        if !self.cluster.devices.is_empty() && self.model.device != DeviceKind::Cuda {
            let why = "names graphics processors, and model.device = \"cpu\": set model.device = \"cuda\", or leave it out";
            return Err(("cluster.devices".to_owned(), why.to_owned()));
        }
        self.check_engine()?;
        Training::try_from(&self.training).map_err(|error| (error.path.clone(), format!("{} {}", error.value, error.rule)))?;
        if !registry::AGENTS.contains(&self.agent.r#type.as_str()) {
            let kind = &self.agent.r#type;
            let meant =
                nearest(kind, registry::AGENTS.into_iter()).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            return Err(("agent.type".to_owned(), format!("no agent {kind:?}{meant} There are {}", registry::AGENTS.join(", "))));
        }
        match registry::check_agent(&self.agent) {
            Err(RolloutError::Config { place, problem }) => return Err((place.to_owned(), problem)),
            Err(other) => return Err(("agent".to_owned(), other.to_string())),
            Ok(()) => {}
        }
        match registry::environment(&self.environment) {
            Err(RolloutError::Config { place, problem }) => return Err((place.to_owned(), problem)),
            Err(other) => return Err(("environment".to_owned(), other.to_string())),
            Ok(_) => {}
        }
        EnvFilter::try_new(&self.logging.level).map_err(|error| ("logging.level".to_owned(), error.to_string()))?;
        match Registry::builtin().build(&self.rewards) {
            Ok(_) => Ok(()),
            Err(RewardError::Config { place, why }) => {
                // `rewards.parts[1] (type = "length", name = "short")`: the path ends at the blank.
                let (path, which) = place.split_once(' ').unwrap_or((&place, ""));
                Err((path.to_owned(), format!("{which} {why}").trim_start().to_owned()))
            }
            Err(other) => Err(("rewards".to_owned(), other.to_string())),
        }
    }
}
