//! Group-relative advantage of GRPO ([2402.03300](https://arxiv.org/abs/2402.03300)):
//!
//! A_i = (R_i - mean(R)) / (std(R) + eps)
//!
//! `std` is the population's, as in the paper; `bessel` divides by G - 1 as TRL does, so that imported configs match.
//! Without `std` it is the advantage of Dr. GRPO ([2503.20783](https://arxiv.org/abs/2503.20783)): A_i = R_i - mean(R).
use super::{Advantage, is_constant, mean, std};

/// Added to the standard deviation where the config does not say (TRL's value).
pub const EPS: f64 = 1e-4;

/// The rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grpo {
    /// Divide by the standard deviation.
    pub std: bool,
    /// With Bessel's correction.
    pub bessel: bool,
    /// Added to the standard deviation.
    pub eps: f64,
}

impl Advantage for Grpo {
    fn name(&self) -> &'static str {
        "grpo"
    }

    fn advantages(&self, rewards: &[f64]) -> Vec<f64> {
        if is_constant(rewards) {
            return vec![0.0; rewards.len()];
        }
        let mean = mean(rewards);
        let scale = if self.std { std(rewards, self.bessel) + self.eps } else { 1.0 };
        rewards.iter().map(|r| (r - mean) / scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Grpo = Grpo { std: true, bessel: false, eps: EPS };

    #[test]
    fn known_values() {
        // Half of them right: mean 0.5, population std 0.5, Bessel's 1 / sqrt(3).
        let rewards = [1.0, 0.0, 0.0, 1.0];
        let a = 0.5 / 0.5001;
        assert_eq!(PLAIN.advantages(&rewards), [a, -a, -a, a]);
        let b = 0.5 / ((1.0f64 / 3.0).sqrt() + EPS);
        assert_eq!(Grpo { bessel: true, ..PLAIN }.advantages(&rewards), [b, -b, -b, b]);
        assert_eq!(Grpo { std: false, ..PLAIN }.advantages(&rewards), [0.5, -0.5, -0.5, 0.5]);
    }

    #[test]
    fn no_signal_is_exactly_zero() {
        assert!(PLAIN.advantages(&[]).is_empty());
        assert_eq!(PLAIN.advantages(&[0.7]), [0.0]);
        // 0.1 added seven times and divided by 7 is not 0.1.
        assert_eq!(PLAIN.advantages(&[0.1; 7]), [0.0; 7]);
    }

    proptest! {
        #[test]
        fn sums_to_zero_and_keeps_the_order(rewards in proptest::collection::vec(-10.0f64..10.0, 2..33)) {
            let a = PLAIN.advantages(&rewards);
            prop_assert!(a.iter().sum::<f64>().abs() < 1e-9);
            for i in 1..a.len() {
                prop_assert_eq!(rewards[i] > rewards[i - 1], a[i] > a[i - 1]);
            }
        }

        #[test]
        fn shifting_rewards_changes_nothing(rewards in proptest::collection::vec(-10.0f64..10.0, 2..17), shift in -5.0f64..5.0) {
            let shifted: Vec<f64> = rewards.iter().map(|r| r + shift).collect();
            for (a, b) in PLAIN.advantages(&rewards).iter().zip(PLAIN.advantages(&shifted)) {
                prop_assert!((a - b).abs() < 1e-6);
            }
        }
    }
}
