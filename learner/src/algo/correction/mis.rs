//! Masked importance sampling, the token mask of IcePop ([2510.18855](https://arxiv.org/abs/2510.18855)):
//!
//! w = k if min <= k <= max, else 0, with k = exp(logp_prox - logp_sampled)
//!
//! A token on which the two policies differ too much says nothing about the policy that learns: it is left out, while the
//! divisors keep counting it.
use super::Correction;

/// The correction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mis {
    /// alpha, at most 1.
    pub min: f64,
    /// beta, at least 1.
    pub max: f64,
}

impl Correction for Mis {
    fn name(&self) -> &'static str {
        "mis"
    }

    fn weight(&self, ratio: f64) -> f64 {
        if (self.min..=self.max).contains(&ratio) { ratio } else { 0.0 }
    }
}
