//! From the rewards of a group to the advantage of each sample. One pure file each; chosen by name
//! (`training.advantage.type`).
//!
//! Invariants
//! - **V1** an advantage is a function of its own group's rewards alone: never of the batch, a rank or an order of arrival.
//! - **V2** a group of one sample, or of equal rewards, has advantage 0 everywhere, exactly.
pub mod grpo;
pub mod rloo;

use crate::config::AdvantageConfig;
use std::fmt::Debug;
use std::sync::Arc;

/// A rule from rewards to advantages.
pub trait Advantage: Debug + Send + Sync {
    /// The name in the registry.
    fn name(&self) -> &'static str;
    /// One advantage a sample, in the order of `rewards`. `[G] -> [G]`; rewards are finite (checked by the aggregator).
    fn advantages(&self, rewards: &[f64]) -> Vec<f64>;
}

/// Names that `training.advantage.type` takes.
pub const NAMES: &[&str] = &["grpo", "rloo"];

/// The rule that a config names. `std_default` is what `std` is where the config does not say.
#[must_use]
pub fn build(config: &AdvantageConfig, std_default: bool) -> Arc<dyn Advantage> {
    match *config {
        AdvantageConfig::Grpo { std, bessel, eps } => Arc::new(grpo::Grpo { std: std.unwrap_or(std_default), bessel, eps }),
        AdvantageConfig::Rloo {} => Arc::new(rloo::Rloo),
    }
}

/// Whether a group carries no signal: fewer than two samples, or all rewards equal.
#[must_use]
pub fn is_constant(rewards: &[f64]) -> bool {
    rewards.windows(2).all(|pair| pair[0] == pair[1])
}

/// Mean of a list, added in order; 0 of nothing.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "groups have at most 4096 samples")]
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Standard deviation: of the population, or with Bessel's correction. 0 of fewer than two values.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "groups have at most 4096 samples")]
pub fn std(values: &[f64], bessel: bool) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (squares / (values.len() - usize::from(bessel)) as f64).sqrt()
}
