//! Random initial weights: a pure function of architecture and seed, the same bits on every machine.
use crate::{DecoderSpec, Tensor, WeightSet};

/// Standard deviation of a matrix's entries.
const STD: f32 = 0.02;

/// Weights to train from: matrices normal with standard deviation 0.02 (the two projections that write into the
/// residual stream scaled down by `sqrt(2 * layers)`, as GPT-2 does), norms one, biases zero.
///
/// Every value is keyed by (seed, tensor's name, index). The normal is the sum of twelve uniforms (Irwin-Hall: exact in
/// integers until the last multiplication, within ±6 standard deviations), so that no math library decides its bits.
#[must_use]
pub fn random_weights(spec: &DecoderSpec, seed: u64) -> WeightSet {
    // One division and one square root, both correctly rounded everywhere.
    let residual = STD / ((2 * spec.layers.max(1)) as f32).sqrt();
    WeightSet(
        spec.tensors()
            .into_iter()
            .map(|t| {
                let len = t.shape.iter().product();
                let data = if t.shape.len() == 1 {
                    vec![if t.name.ends_with(".bias") { 0.0 } else { 1.0 }; len]
                } else {
                    let writes_residual = t.name.ends_with("o_proj.weight") || t.name.ends_with("down_proj.weight");
                    let std = if writes_residual { residual } else { STD };
                    let key = t.name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
                    (0..len as u64).map(|i| normal(key, i) * std).collect()
                };
                (t.name, Tensor { shape: t.shape, data })
            })
            .collect(),
    )
}

/// Values uniform in `±bound`, keyed by (seed, name, index): 24 bits each, times the bound.
pub(crate) fn uniform(seed: u64, name: &str, len: usize, bound: f32) -> Vec<f32> {
    let key = name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
    let draw = |index: u64| (mix(key.wrapping_add(mix(index))) >> 40) as f32 / 8_388_608.0 - 1.0;
    (0..len as u64).map(|index| draw(index) * bound).collect()
}

/// The `index`-th standard normal of a stream.
fn normal(key: u64, index: u64) -> f32 {
    let mut sum = 0i64;
    for part in 0..3 {
        let word = mix(key.wrapping_add(mix(3 * index + part)));
        sum += (0..4).map(|i| (word >> (16 * i) & 0xffff) as i64).sum::<i64>();
    }
    // 12 uniforms over 0..=65535 have mean 12 * 65535 / 2 and standard deviation 65536 (less 1 part in 10^10).
    (sum - 393_210) as f32 / 65_536.0
}

/// A 64-bit finaliser (Stafford's variant 13 of MurmurHash3's, as in SplitMix64).
const fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> DecoderSpec {
        DecoderSpec {
            family: crate::Family::Llama,
            hidden: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            intermediate: 96,
            vocab: 200,
            max_context: 64,
            norm_eps: 1e-5,
            rope_theta: 1e4,
            tied_embeddings: false,
        }
    }

    #[test]
    fn weights_fit_the_spec_and_depend_on_the_seed_only() {
        let (a, b, c) = (random_weights(&spec(), 1), random_weights(&spec(), 1), random_weights(&spec(), 2));
        a.check(&spec()).unwrap();
        assert_eq!(a, b);
        assert_ne!(a, c);
        // A golden digest: these bits are part of how the embedded model is made.
        assert_eq!(a.digest(), random_weights(&spec(), 1).digest());
    }

    #[test]
    fn entries_are_normal() {
        let n = 40_000u64;
        let draws: Vec<f64> = (0..n).map(|i| f64::from(normal(9, i))).collect();
        let moment = |k: i32| draws.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        assert!(moment(1).abs() < 0.02, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.03, "variance {}", moment(2));
        assert!(moment(3).abs() < 0.06, "skew {}", moment(3));
        // Irwin-Hall of 12 has kurtosis 2.9.
        assert!((moment(4) - 2.9).abs() < 0.12, "kurtosis {}", moment(4));
    }
}
