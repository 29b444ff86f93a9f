//! Corrections of a loss whose samples were not drawn from the policy that it starts from: sampled some versions ago, from a
//! truncated distribution, or by other numerics.
//!
//! Three policies are kept apart, as decoupled PPO ([2505.24298](https://arxiv.org/abs/2505.24298)) does: the *behaviour*
//! policy drew the tokens (`logp_sampled`, as stored), the *proximal* one is the step's base, the *current* one is what the
//! update makes of it. A correction holds the first two against each other, per token:
//!
//! w = sg( bound( exp(logp_prox - logp_sampled) ) )
//!
//! and the loss is w times the surrogate of exp(logp - logp_prox). `logp_prox` is what the learner itself computes under the
//! step's base weights: the forward pass of the first inner epoch, before any update. Where sampler and learner agree to the
//! bit, w is exactly 1 and a correction changes no bit.
pub mod mis;
pub mod tis;

use crate::config::CorrectionConfig;
use crate::exact::exp;
use std::fmt::Debug;
use std::sync::Arc;

/// How a ratio of two policies is bounded.
pub trait Correction: Debug + Send + Sync {
    /// The name in the registry.
    fn name(&self) -> &'static str;
    /// The factor of a token's loss for `ratio` = exp(`logp_prox` - `logp_sampled`), which may be infinite.
    fn weight(&self, ratio: f64) -> f64;
}

/// Names that `training.correction.type` takes.
pub const NAMES: &[&str] = &["none", "tis", "mis"];

/// The correction that a config names; `None` for "none". Ranges are checked by [`crate::training::Training`].
#[must_use]
pub fn build(config: &CorrectionConfig) -> Option<Arc<dyn Correction>> {
    match *config {
        CorrectionConfig::None {} => None,
        CorrectionConfig::Tis { min, max } => Some(Arc::new(tis::Tis { min, max })),
        CorrectionConfig::Mis { min, max } => Some(Arc::new(mis::Mis { min, max })),
    }
}

/// Factors of all tokens, detached. All `[N]`, natural log.
#[must_use]
pub fn weights(correction: &dyn Correction, logp_prox: &[f64], logp_sampled: &[f64]) -> Vec<f64> {
    logp_prox.iter().zip(logp_sampled).map(|(prox, sampled)| correction.weight(exp(prox - sampled))).collect()
}
