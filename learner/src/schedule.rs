//! The learning rate of each optimizer update: linear warm-up, then constant, linear or cosine decay to 0.
//!
//! As `transformers`' schedulers, but one update ahead: the first update has `1 / warmup` of the rate instead of 0,
//! since a step at rate 0 is a step for nothing. Updates are counted over inner epochs.
use crate::exact::cos_pi;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shape of the learning rate after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays.
    Constant,
    /// Falls in a straight line to 0.
    Linear,
    /// Falls along half a cosine to 0.
    #[default]
    Cosine,
}

/// Learning rate as a function of the update's number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Rate at the end of warm-up.
    pub peak: f64,
    /// Shape after it.
    pub decay: Decay,
    /// Updates of warm-up.
    pub warmup: u64,
    /// Updates of the whole run.
    pub total: u64,
}

impl Schedule {
    /// Rate of update `update`, counted from 0. Past the end it is that of a decay run out.
    #[must_use]
    pub fn rate(&self, update: u64) -> f64 {
        if update < self.warmup {
            return self.peak * ratio(update + 1, self.warmup);
        }
        let (done, span) = (update - self.warmup, self.total.saturating_sub(self.warmup).max(1));
        let progress = ratio(done, span).min(1.0);
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Linear => self.peak * (1.0 - progress),
            Decay::Cosine => self.peak * 0.5 * (1.0 + cos_pi(progress)),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "update counts are far below 2^53")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        let s = |decay| Schedule { peak: 1.0, decay, warmup: 2, total: 6 };
        let rates = |decay| (0..7).map(|u| s(decay).rate(u)).collect::<Vec<_>>();
        assert_eq!(rates(Decay::Constant), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(rates(Decay::Linear), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]);
        let cosine = rates(Decay::Cosine);
        for (got, want) in cosine.iter().zip([0.5, 1.0, 1.0, 0.853_553_390_593_273_8, 0.5, 0.146_446_609_406_726_2, 0.0]) {
            assert!((got - want).abs() < 1e-15, "{cosine:?}");
        }
    }

    proptest! {
        #[test]
        fn rises_then_never_rises(warmup in 0u64..50, rest in 1u64..200, decay in prop_oneof![Just(Decay::Linear), Just(Decay::Cosine)]) {
            let s = Schedule { peak: 3e-4, decay, warmup, total: warmup + rest };
            for u in 0..s.total {
                let rate = s.rate(u);
                prop_assert!(rate > 0.0 && rate <= s.peak, "update {} has rate {}", u, rate);
                if u < warmup { prop_assert!(u == 0 || rate > s.rate(u - 1)); } else { prop_assert!(s.rate(u + 1) <= rate); }
            }
            prop_assert!(s.rate(s.total).abs() < 1e-18);
        }
    }
}
