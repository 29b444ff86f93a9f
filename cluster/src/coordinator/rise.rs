//! Did held-out reward rise? A percentile bootstrap over prompts, paired: both rounds ask the same prompts, so a resample draws
//! prompts and takes each one's difference (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Samples
//! of one prompt are not independent evidence; that is why prompts are drawn and not samples.
use crate::progress::Rise;

/// Resamples; the ends of the interval then move by less than a hundredth of its width from seed to seed.
const RESAMPLES: usize = 10_000;

/// Mean of `after - before` over prompts with its 95 % interval. `None` where the rounds did not ask the same number of prompts,
/// or none. The same inputs give the same bits.
pub(super) fn rise(before: &[f64], after: &[f64]) -> Option<Rise> {
    if before.is_empty() || before.len() != after.len() {
        return None;
    }
    let differences: Vec<f64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
    let n = differences.len();
    let mut rng = fastrand::Rng::with_seed(n as u64);
    let mut means: Vec<f64> =
        (0..RESAMPLES).map(|_| (0..n).map(|_| differences[rng.usize(..n)]).sum::<f64>() / n as f64).collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[(share * (RESAMPLES - 1) as f64).round() as usize];
    Some(Rise { mean: differences.iter().sum::<f64>() / n as f64, low: at(0.025), high: at(0.975), prompts: n as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_mean() {
        // Differences 0.5 and -0.1 alternating: mean 0.2, deviation 0.3; over 400 prompts the mean's own is 0.015.
        let before = vec![0.25; 400];
        let after: Vec<f64> = (0..400).map(|i| if i % 2 == 0 { 0.75 } else { 0.15 }).collect();
        let rise = rise(&before, &after).unwrap();
        assert!((rise.mean - 0.2).abs() < 1e-12, "{rise:?}");
        let (low, high) = (0.2 - 1.96 * 0.015, 0.2 + 1.96 * 0.015);
        assert!((rise.low - low).abs() < 0.003 && (rise.high - high).abs() < 0.003, "{rise:?}");
    }

    #[test]
    fn pairing_takes_the_prompts_own_difficulty_out() {
        // Prompts differ by far more than the rise; unpaired, the interval would span 0.
        let before: Vec<f64> = (0..200).map(|i| f64::from(i % 10) / 10.0).collect();
        let after: Vec<f64> = before.iter().map(|b| b + 0.05).collect();
        let rise = rise(&before, &after).unwrap();
        assert!((rise.low - 0.05).abs() < 1e-9 && (rise.high - 0.05).abs() < 1e-9, "{rise:?}");
    }

    #[test]
    fn rounds_that_do_not_pair_have_no_rise() {
        assert_eq!(rise(&[], &[]), None);
        assert_eq!(rise(&[0.0], &[0.0, 1.0]), None);
    }
}
