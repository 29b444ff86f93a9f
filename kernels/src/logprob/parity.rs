//! Against the f64 definition (tolerance: roundings of z and of lane sums), and bit-equal between paths.
use super::{CHUNK, reference, row};
use crate::Path;
use crate::testing::{fingerprint, noise};

fn logits(seed: u64, n: usize) -> Vec<f32> {
    noise(seed, n).iter().map(|x| 20.0 * x).collect()
}

#[test]
fn rows_agree_with_the_definition_on_every_path() {
    for n in [1, 2, 17, CHUNK, CHUNK + 1, 3 * CHUNK + 700] {
        for temperature in [1.0, 0.7, 3.0] {
            let logits = logits(n as u64, n);
            let (want, entropy) = reference::row(&logits, f64::from(temperature));
            let mut first = None;
            for path in Path::available() {
                let stats = row(path, &logits, temperature);
                assert_eq!(*first.get_or_insert(stats), stats, "{path}");
                assert!((f64::from(stats.entropy) - entropy).abs() < 1e-5 * entropy.max(1.0), "{n}: {stats:?} {entropy}");
                for (logit, want) in logits.iter().zip(&want) {
                    assert!((f64::from(stats.logp(*logit)) - want).abs() < 1e-5, "{n}");
                }
            }
        }
    }
}

#[test]
fn excluded_tokens_have_no_weight_even_by_whole_chunks() {
    let mut logits = vec![f32::NEG_INFINITY; 2 * CHUNK + 5];
    (logits[CHUNK + 3], logits[2 * CHUNK + 4]) = (1.0, 1.0);
    let stats = row(Path::detect(), &logits, 1.0);
    assert_eq!((stats.log_sum, stats.logp(1.0)), (std::f32::consts::LN_2, -std::f32::consts::LN_2));
    assert_eq!(stats.entropy, std::f32::consts::LN_2);
}

#[test]
fn what_is_no_distribution_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = logits(1, 100);
        values[60] = bad;
        assert!(!row(Path::detect(), &values, 1.0).log_sum.is_finite(), "{bad}");
        assert!(!row(Path::detect(), &[bad], 1.0).log_sum.is_finite(), "{bad}");
    }
    assert!(!row(Path::detect(), &[f32::NEG_INFINITY; 20], 1.0).log_sum.is_finite());
}

#[test]
fn bits_are_the_committed_ones() {
    let stats = row(Path::detect(), &logits(5, 5000), 0.8);
    assert_eq!(fingerprint(&[stats.max, stats.log_sum, stats.entropy]), 0x6c23_0725_eb81_f7e6);
}
