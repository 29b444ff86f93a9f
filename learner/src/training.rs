//! The checked meaning of `[training]`: what the rest of the crate works with.
use crate::advantage::{self, Advantage};
use crate::algo::correction::{self, Correction};
use crate::algo::{self, Loss};
use crate::batching::Packing;
use crate::config::{
    AdvantageConfig, AggregationConfig, CheckpointConfig, ConfigError, CorrectionConfig, EvalConfig, LossConfig, TrainingConfig,
};
use crate::schedule::Schedule;
use cohort_engine::AdamW;
use cohort_protocol::StepId;
use std::sync::Arc;

/// A training plan in which every value is in range.
#[derive(Debug, Clone)]
pub struct Training {
    /// Steps of the run.
    pub steps: u64,
    /// Groups of one step, at least 1.
    pub groups_per_step: usize,
    /// Samples of one group, at least 2 (1 for a loss without advantages).
    pub group_size: usize,
    /// Learning rate by optimizer update.
    pub schedule: Schedule,
    /// Gradients are scaled down to this norm; `None` leaves them.
    pub max_grad_norm: Option<f64>,
    /// Optimizer updates of one step, at least 1.
    pub inner_epochs: u32,
    /// How sequences are put together.
    pub packing: Packing,
    /// Parts of a step whose gradients are summed in one tree, at least 1.
    pub logical_shards: usize,
    /// Whether each learner rank keeps a part of the optimizer's state.
    pub shard_optimizer: bool,
    /// Steps whose forward pass is computed though sampling has done so: every so many; 0 for none.
    pub recheck_interval: u64,
    /// Key of every random draw.
    pub seed: u64,
    /// AdamW's constants.
    pub optimizer: AdamW,
    /// From rewards to advantages.
    pub advantage: Arc<dyn Advantage>,
    /// The objective.
    pub loss: Arc<dyn Loss>,
    /// What bounds the ratio of the base policy to the one that sampled; `None` leaves it out.
    pub correction: Option<Arc<dyn Correction>>,
    /// Held-out evaluation.
    pub eval: EvalConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
}

impl Training {
    /// Learning rate of an inner epoch (from 0) of a step.
    #[must_use]
    pub fn learning_rate(&self, step: StepId, epoch: u32) -> f64 {
        self.schedule.rate(step.0.saturating_sub(1) * u64::from(self.inner_epochs) + u64::from(epoch))
    }

    /// Whether a step computes its forward pass whatever sampling kept of it.
    #[must_use]
    pub fn rechecks(&self, step: StepId) -> bool {
        self.recheck_interval > 0 && step.0.is_multiple_of(self.recheck_interval)
    }

    /// What decides the bits of a step besides the engine's own numerics, one line.
    #[must_use]
    pub fn numerics(&self) -> String {
        let Packing { micro_batch_tokens, share_prompts } = self.packing;
        let shards = self.logical_shards;
        format!("micro_batch_tokens={micro_batch_tokens} share_prompts={share_prompts} logical_shards={shards}")
    }
}

impl TryFrom<&TrainingConfig> for Training {
    type Error = ConfigError;

    fn try_from(c: &TrainingConfig) -> Result<Self, ConfigError> {
        let smallest_group = if matches!(c.loss, LossConfig::Sft {}) { 1 } else { 2 };
        let why = "must be at least 2: advantages are relative to the group";
        check("group_size", c.group_size, c.group_size >= smallest_group, why)?;
        check(
            "group_size",
            c.group_size,
            usize::from(c.group_size) <= cohort_protocol::limits::MAX_GROUP,
            "must be at most 4096",
        )?;
        check("steps", c.steps, c.steps >= 1, "must be at least 1")?;
        check("groups_per_step", c.groups_per_step, c.groups_per_step >= 1, "must be at least 1")?;
        check("inner_epochs", c.inner_epochs, c.inner_epochs >= 1, "must be at least 1")?;
        let why = "must be at most 1024: the groups of all those steps are under way at once";
        check("max_staleness", c.max_staleness, c.max_staleness <= 1024, why)?;
        let why = "has no effect with max_staleness = 0, where no weights change in the middle of a sequence; remove it";
        check("keep_stale_kv", c.keep_stale_kv, !c.keep_stale_kv || c.max_staleness > 0, why)?;
        let corrected = !matches!(c.correction, CorrectionConfig::None {});
        let why = "makes log-probs inexact and needs a correction: set training.correction.type to \"tis\" or \"mis\"";
        check("keep_stale_kv", c.keep_stale_kv, !c.keep_stale_kv || corrected, why)?;
        check("micro_batch_tokens", c.micro_batch_tokens, c.micro_batch_tokens >= 1, "must be at least 1")?;
        check("logical_shards", c.logical_shards, c.logical_shards >= 1, "must be at least 1")?;
        let why = format!("must be at most training.groups_per_step ({}): a shard has at least one group", c.groups_per_step);
        check("logical_shards", c.logical_shards, c.logical_shards <= c.groups_per_step, &why)?;
        positive("learning_rate", c.learning_rate)?;
        unit("warmup_ratio", c.warmup_ratio)?;
        non_negative("max_grad_norm", c.max_grad_norm)?;
        check("checkpoint.keep", c.checkpoint.keep, c.checkpoint.keep >= 1, "must be at least 1, or nothing could be resumed")?;
        check_loss(&c.loss)?;
        check_correction(c)?;
        if let AdvantageConfig::Grpo { eps, .. } = c.advantage {
            non_negative("advantage.eps", eps)?;
        }
        let Some(total) = c.steps.checked_mul(u64::from(c.inner_epochs)) else {
            return Err(refuse("steps", c.steps, "steps x inner_epochs must be below 2^64"));
        };
        Ok(Self {
            steps: c.steps,
            groups_per_step: c.groups_per_step as usize,
            group_size: usize::from(c.group_size),
            schedule: Schedule { peak: c.learning_rate, decay: c.schedule, warmup: warmup(c.warmup_ratio, total), total },
            max_grad_norm: (c.max_grad_norm > 0.0).then_some(c.max_grad_norm),
            inner_epochs: c.inner_epochs,
            packing: Packing { micro_batch_tokens: c.micro_batch_tokens as usize, share_prompts: c.share_prompts },
            logical_shards: c.logical_shards as usize,
            shard_optimizer: c.shard_optimizer,
            recheck_interval: c.recheck_interval.into(),
            seed: c.seed,
            optimizer: optimizer(c)?,
            advantage: advantage::build(&c.advantage, !matches!(c.loss, LossConfig::DrGrpo { .. })),
            loss: algo::build(&c.loss),
            correction: correction::build(&c.correction),
            eval: c.eval,
            checkpoint: c.checkpoint,
        })
    }
}

fn optimizer(c: &TrainingConfig) -> Result<AdamW, ConfigError> {
    let [beta1, beta2] = c.optimizer.betas;
    for (i, beta) in [beta1, beta2].into_iter().enumerate() {
        check(&format!("optimizer.betas[{i}]"), beta, (0.0..1.0).contains(&beta), "must be at least 0 and below 1")?;
    }
    positive("optimizer.eps", c.optimizer.eps)?;
    non_negative("optimizer.weight_decay", c.optimizer.weight_decay)?;
    Ok(AdamW { beta1, beta2, eps: c.optimizer.eps, weight_decay: c.optimizer.weight_decay })
}

fn check_loss(loss: &LossConfig) -> Result<(), ConfigError> {
    let clipping = |low: f64, high: f64, beta: f64| {
        check("loss.clip_low", low, low > 0.0 && low <= 1.0, "must be above 0 and at most 1: the ratio cannot fall below 0")?;
        positive("loss.clip_high", high)?;
        non_negative("loss.beta", beta)
    };
    match *loss {
        LossConfig::Grpo { clip_low, clip_high, beta, entropy_coef, aggregation, max_completion_length } => {
            clipping(clip_low, clip_high, beta)?;
            let finite = entropy_coef.is_finite();
            check("loss.entropy_coef", entropy_coef, finite, "must be a finite number")?;
            match (aggregation, max_completion_length) {
                (AggregationConfig::Constant, None) => Err(refuse(
                    "loss.aggregation",
                    "\"constant\"",
                    "needs loss.max_completion_length; set it to agent.max_new_tokens x the turns of an episode",
                )),
                (AggregationConfig::Constant, Some(0)) => Err(refuse("loss.max_completion_length", 0, "must be at least 1")),
                (AggregationConfig::SequenceMean | AggregationConfig::TokenMean, Some(n)) => Err(refuse(
                    "loss.max_completion_length",
                    n,
                    "has no effect here; remove it or set loss.aggregation = \"constant\"",
                )),
                _ => Ok(()),
            }
        }
        LossConfig::DrGrpo { clip_low, clip_high, beta, max_completion_length } => {
            clipping(clip_low, clip_high, beta)?;
            check("loss.max_completion_length", max_completion_length, max_completion_length >= 1, "must be at least 1")
        }
        LossConfig::Sft {} => Ok(()),
    }
}

fn check_correction(c: &TrainingConfig) -> Result<(), ConfigError> {
    let (CorrectionConfig::Tis { min, max } | CorrectionConfig::Mis { min, max }) = c.correction else { return Ok(()) };
    if matches!(c.loss, LossConfig::Sft {}) {
        return Err(refuse("correction", "set", "has no effect with loss \"sft\", which reads no ratio; remove it"));
    }
    let why = "must be from 0 to 1: a token drawn from the base policy has ratio 1";
    check("correction.min", min, (0.0..=1.0).contains(&min), why)?;
    check("correction.max", max, max >= 1.0 && max.is_finite(), "must be a finite number, at least 1")
}

/// Updates of warm-up: the part of all of them, rounded up as `transformers` does.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 <= ratio <= 1")]
fn warmup(ratio: f64, total: u64) -> u64 {
    ((ratio * total as f64).ceil() as u64).min(total)
}

fn refuse(key: &str, value: impl ToString, rule: &str) -> ConfigError {
    ConfigError { path: format!("training.{key}"), value: value.to_string(), rule: rule.to_owned() }
}

fn check(key: &str, value: impl ToString, holds: bool, rule: &str) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(refuse(key, value, rule)) }
}

fn positive(key: &str, value: f64) -> Result<(), ConfigError> {
    check(key, value, value > 0.0 && value.is_finite(), "must be a finite number above 0")
}

fn non_negative(key: &str, value: f64) -> Result<(), ConfigError> {
    check(key, value, value >= 0.0 && value.is_finite(), "must be a finite number, at least 0")
}

fn unit(key: &str, value: f64) -> Result<(), ConfigError> {
    check(key, value, (0.0..=1.0).contains(&value), "must be from 0 to 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        let t = Training::try_from(&TrainingConfig::default()).unwrap();
        assert_eq!((t.schedule.warmup, t.schedule.total, t.loss.name(), t.advantage.name()), (10, 100, "grpo", "grpo"));
        assert!(!t.loss.needs_reference());
    }

    #[test]
    fn dr_grpo_leaves_the_std_out_unless_told() {
        let loss = LossConfig::DrGrpo { clip_low: 0.2, clip_high: 0.2, beta: 0.0, max_completion_length: 8 };
        let advantages = |advantage| {
            let config = TrainingConfig { loss, advantage, ..TrainingConfig::default() };
            Training::try_from(&config).unwrap().advantage.advantages(&[1.0, 0.0])
        };
        assert_eq!(advantages(AdvantageConfig::default()), [0.5, -0.5]);
        assert_ne!(advantages(AdvantageConfig::Grpo { std: Some(true), bessel: false, eps: 0.0 }), [0.5, -0.5]);
    }

    #[test]
    fn values_out_of_range_are_named() {
        type Edit = fn(&mut TrainingConfig);
        let cases: &[(&str, Edit)] = &[
            ("training.steps = 0: must be at least 1", |c| c.steps = 0),
            ("training.group_size = 1: must be at least 2", |c| c.group_size = 1),
            ("training.group_size = 5000: must be at most 4096", |c| c.group_size = 5000),
            ("training.groups_per_step = 0", |c| c.groups_per_step = 0),
            ("training.learning_rate = NaN: must be a finite number above 0", |c| c.learning_rate = f64::NAN),
            ("training.learning_rate = -1", |c| c.learning_rate = -1.0),
            ("training.warmup_ratio = 1.5: must be from 0 to 1", |c| c.warmup_ratio = 1.5),
            ("training.max_grad_norm = inf", |c| c.max_grad_norm = f64::INFINITY),
            ("training.optimizer.betas[1] = 1: must be at least 0 and below 1", |c| c.optimizer.betas[1] = 1.0),
            ("training.optimizer.eps = 0", |c| c.optimizer.eps = 0.0),
            ("training.inner_epochs = 0", |c| c.inner_epochs = 0),
            ("training.micro_batch_tokens = 0", |c| c.micro_batch_tokens = 0),
            ("training.checkpoint.keep = 0", |c| c.checkpoint.keep = 0),
            ("training.logical_shards = 0: must be at least 1", |c| c.logical_shards = 0),
            ("training.logical_shards = 5: must be at most training.groups_per_step (4)", |c| c.logical_shards = 5),
            ("training.loss.max_completion_length = 7: has no effect", |c| {
                c.loss = LossConfig::Grpo {
                    clip_low: 0.2,
                    clip_high: 0.2,
                    beta: 0.0,
                    entropy_coef: 0.0,
                    aggregation: AggregationConfig::TokenMean,
                    max_completion_length: Some(7),
                }
            }),
            ("training.loss.clip_low = 0:", |c| {
                c.loss = LossConfig::DrGrpo { clip_low: 0.0, clip_high: 0.2, beta: 0.0, max_completion_length: 8 };
            }),
            ("training.max_staleness = 5000: must be at most 1024", |c| c.max_staleness = 5000),
            ("training.keep_stale_kv = true: has no effect with max_staleness = 0", |c| c.keep_stale_kv = true),
            ("training.keep_stale_kv = true: makes log-probs inexact and needs a correction", |c| {
                (c.max_staleness, c.keep_stale_kv) = (1, true);
            }),
            ("training.correction.min = 1.5: must be from 0 to 1", |c| {
                c.correction = CorrectionConfig::Mis { min: 1.5, max: 5.0 };
            }),
            ("training.correction.max = 0.5: must be a finite number, at least 1", |c| {
                c.correction = CorrectionConfig::Tis { min: 0.0, max: 0.5 };
            }),
            ("training.correction = set: has no effect with loss", |c| {
                (c.loss, c.correction) = (LossConfig::Sft {}, CorrectionConfig::Tis { min: 0.0, max: 2.0 });
            }),
            ("training.advantage.eps = NaN", |c| {
                c.advantage = AdvantageConfig::Grpo { std: None, bessel: false, eps: f64::NAN };
            }),
        ];
        for (want, edit) in cases {
            let mut config = TrainingConfig::default();
            edit(&mut config);
            let error = Training::try_from(&config).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
