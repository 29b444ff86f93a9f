//! Truncated importance sampling (Yao et al., "Your efficient RL framework secretly brings you off-policy RL training",
//! 2025; the truncation is that of Ionides, J. Comput. Graph. Stat. 17, 2008):
//!
//! w = clip(exp(logp_prox - logp_sampled), min, max)
//!
//! Truncation from above bounds the variance that a rare token brings. `min` is 0 there: nothing is raised.
use super::Correction;

/// The correction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tis {
    /// C_min, at most 1.
    pub min: f64,
    /// C_max, at least 1.
    pub max: f64,
}

impl Correction for Tis {
    fn name(&self) -> &'static str {
        "tis"
    }

    fn weight(&self, ratio: f64) -> f64 {
        ratio.clamp(self.min, self.max)
    }
}
