//! Leave-one-out advantage of RLOO ([2402.14740](https://arxiv.org/abs/2402.14740)):
//!
//! A_i = R_i - (sum(R) - R_i) / (G - 1), the mean of the other samples being the baseline.
use super::{Advantage, is_constant};

/// The rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rloo;

impl Advantage for Rloo {
    fn name(&self) -> &'static str {
        "rloo"
    }

    #[expect(clippy::cast_precision_loss, reason = "groups have at most 4096 samples")]
    fn advantages(&self, rewards: &[f64]) -> Vec<f64> {
        if is_constant(rewards) {
            return vec![0.0; rewards.len()];
        }
        let (sum, others) = (rewards.iter().sum::<f64>(), rewards.len() as f64 - 1.0);
        rewards.iter().map(|r| r - (sum - r) / others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::mean;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        assert_eq!(Rloo.advantages(&[1.0, 0.0, 0.0, 0.0]), [1.0, -1.0 / 3.0, -1.0 / 3.0, -1.0 / 3.0]);
        assert_eq!(Rloo.advantages(&[0.3]), [0.0]);
        assert_eq!(Rloo.advantages(&[0.1; 7]), [0.0; 7]);
    }

    proptest! {
        /// Leaving one out is centring, scaled by G / (G - 1).
        #[test]
        fn is_scaled_centring(rewards in proptest::collection::vec(-10.0f64..10.0, 2..33)) {
            let (m, g) = (mean(&rewards), rewards.len() as f64);
            for (a, r) in Rloo.advantages(&rewards).iter().zip(&rewards) {
                prop_assert!((a - (r - m) * g / (g - 1.0)).abs() < 1e-9);
            }
        }
    }
}
