//! `random`: a reward that no behaviour influences. A run that "learns" under it is broken.
use crate::reward::{Grade, Rule, SampleInput, ScoreInput};
use cohort_protocol::LeasePurpose;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Draw {
    /// 1 with `probability`, else 0.
    #[default]
    Coin,
    /// Uniform in 0..1.
    Uniform,
}

/// Keys of `type = "random"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RandomConfig {
    /// Which draw. Default `coin`.
    pub draw: Draw,
    /// Probability of a 1 under `coin`. Default 0.5.
    pub probability: f64,
}

impl Default for RandomConfig {
    fn default() -> Self {
        Self { draw: Draw::Coin, probability: 0.5 }
    }
}

/// The rule: a pure function of (seed, purpose, group, sample).
#[derive(Debug)]
pub struct Random {
    config: RandomConfig,
}

impl Random {
    /// With these keys.
    pub fn new(config: RandomConfig) -> Result<Self, String> {
        if !(0.0..=1.0).contains(&config.probability) {
            return Err(format!("probability = {}: expected a number in 0..1", config.probability));
        }
        Ok(Self { config })
    }
}

impl Rule for Random {
    fn grade(&self, input: &ScoreInput, sample: &SampleInput) -> Result<Grade, String> {
        let purpose = match input.purpose {
            LeasePurpose::Train => 0,
            LeasePurpose::Eval { step, greedy } => 1 + 2 * step + u64::from(greedy),
        };
        let key = [input.seed, purpose, input.group.0, u64::from(sample.sample.0)];
        let uniform = (key.into_iter().fold(0x636f_686f_7274_2f72, mix) >> 11) as f64 / (1u64 << 53) as f64;
        Ok(match self.config.draw {
            Draw::Coin => Grade::pass(uniform < self.config.probability),
            Draw::Uniform => Grade::of(uniform),
        })
    }
}

/// One round of SplitMix64's finaliser over state and word.
fn mix(state: u64, word: u64) -> u64 {
    let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::group;
    use cohort_protocol::GroupId;
    use serde_json::json;

    fn draws(config: RandomConfig, seed: u64, text: &str) -> Vec<f64> {
        let rule = Random::new(config).unwrap();
        let mut input = group(json!({}), &[text; 8]);
        input.seed = seed;
        (0..500)
            .flat_map(|g| {
                input.group = GroupId(g);
                input.samples.iter().map(|s| rule.grade(&input, s).unwrap().score).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn draws_depend_on_the_key_alone_and_are_fair() {
        let coins = draws(RandomConfig::default(), 1, "a");
        assert_eq!(coins, draws(RandomConfig::default(), 1, "another text"));
        assert_ne!(coins, draws(RandomConfig::default(), 2, "a"));
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        assert!((mean(&coins) - 0.5).abs() < 0.03, "{}", mean(&coins));
        let uniform = draws(RandomConfig { draw: Draw::Uniform, ..Default::default() }, 1, "a");
        assert!((mean(&uniform) - 0.5).abs() < 0.02 && uniform.iter().all(|u| (0.0..1.0).contains(u)));
        assert!(Random::new(RandomConfig { probability: 1.5, ..Default::default() }).is_err());
    }
}
