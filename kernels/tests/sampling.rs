//! What may be drawn: against transformers' logits processors, and what must hold for any logits.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use cohort_kernels::Path;
use cohort_kernels::logprob::{CHUNK, row};
use cohort_kernels::sampling::{Penalties, Truncation, categorical, top_k, top_p};
use proptest::prelude::*;
use serde_json::Value;

const NOT: f32 = f32::NEG_INFINITY;

fn number(value: &Value, key: &str) -> f32 {
    value[key].as_f64().unwrap() as f32
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn distributions_are_those_of_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/sampling.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let penalties = Penalties {
            repetition: number(case, "repetition"),
            presence: number(case, "presence"),
            frequency: number(case, "frequency"),
        };
        let truncation =
            Truncation { top_k: number(case, "top_k") as u32, top_p: number(case, "top_p"), min_p: number(case, "min_p") };
        let temperature = number(case, "temperature");
        for (index, given) in golden["rows"].as_array().unwrap().iter().enumerate() {
            let context: Vec<u32> = numbers(&given["context"]).iter().map(|t| *t as u32).collect();
            for path in Path::available() {
                let mut logits = numbers(&given["logits"]);
                penalties.apply(&mut logits, &context, given["made"].as_u64().unwrap() as usize);
                truncation.apply(path, &mut logits, temperature);
                let stats = row(path, &logits, temperature);
                let what = format!("{penalties:?} {truncation:?} row {index} {path}");
                for (token, want) in case["log_probs"][index].as_array().unwrap().iter().enumerate() {
                    let Some(want) = want.as_f64() else {
                        assert_eq!(logits[token], NOT, "{what}: token {token} may not be drawn");
                        continue;
                    };
                    // Roundings of z, which reaches 20, in f32.
                    let got = f64::from(stats.logp(logits[token]));
                    assert!((got - want).abs() < 2e-5, "{what}: token {token} {got}, not {want}");
                }
            }
        }
    }
}

/// Logits with ties, wide and narrow, some impossible; never all.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![4 => -9.0f32..9.0, 3 => (-3i8..4).prop_map(f32::from), 1 => Just(NOT), 1 => Just(-0.0)];
    (0.1f32..8.0, prop::collection::vec(value, 1..400)).prop_map(|(scale, mut values)| {
        values.iter_mut().for_each(|z| *z *= scale);
        values[0] = values[0].max(-1.0);
        values
    })
}

/// The nucleus by its definition: everything ranked, in f64.
fn nucleus(logits: &[f32], temperature: f32, p: f64) -> (Vec<usize>, f64) {
    let mut ranked: Vec<usize> = (0..logits.len()).filter(|i| logits[*i] > NOT).collect();
    ranked.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
    let weight = |i: usize| ((f64::from(logits[i]) - f64::from(logits[ranked[0]])) / f64::from(temperature)).exp();
    let total: f64 = ranked.iter().map(|i| weight(*i)).sum();
    let (mut mass, mut nearest) = (0.0, f64::INFINITY);
    let mut kept = Vec::new();
    for i in &ranked {
        nearest = nearest.min((mass / total - p).abs());
        if mass / total < p {
            kept.push(*i);
        }
        mass += weight(*i);
    }
    kept.sort_unstable();
    (kept, nearest)
}

fn kept(logits: &[f32]) -> Vec<usize> {
    (0..logits.len()).filter(|i| logits[*i] > NOT).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_off_changes_no_bit(logits in logits(), context in prop::collection::vec(0u32..500, 0..50), t in 0.2f32..3.0) {
        for truncation in [Truncation::OFF, Truncation { top_k: logits.len() as u32, ..Truncation::OFF }] {
            let mut same = logits.clone();
            Penalties::OFF.apply(&mut same, &context, context.len() / 2);
            truncation.apply(Path::detect(), &mut same, t);
            prop_assert_eq!(bits(&same), bits(&logits));
        }
    }

    #[test]
    fn what_is_left_is_the_old_distribution_renormalised(
        logits in logits(), t in 0.2f32..3.0, k in 0u32..50, p in 0.01f32..1.0, m in 0.0f32..1.0, u in 1e-6f64..0.999_999,
    ) {
        let truncation = Truncation { top_k: k, top_p: p, min_p: m };
        let mut left = logits.clone();
        truncation.apply(Path::detect(), &mut left, t);
        let (before, after) = (row(Path::detect(), &logits, t), row(Path::detect(), &left, t));
        prop_assert_eq!(before.max, after.max, "the most likely token stays");
        let stays = kept(&left);
        let mass: f64 = stays.iter().map(|i| f64::from(after.logp(left[*i])).exp()).sum();
        prop_assert!((mass - 1.0).abs() < 1e-5, "{mass}");
        let shift = before.log_sum - after.log_sum;
        prop_assert!(shift >= -1e-6, "a token can only gain");
        for i in stays {
            prop_assert_eq!(left[i].to_bits(), logits[i].to_bits());
            prop_assert!((after.logp(left[i]) - before.logp(logits[i]) - shift).abs() < 1e-4);
        }
        let drawn = categorical(Path::detect(), &left, &after, u);
        prop_assert!(left[drawn as usize] > NOT);
        for path in Path::available() {
            let mut other = logits.clone();
            truncation.apply(path, &mut other, t);
            prop_assert_eq!(bits(&other), bits(&left), "{}", path);
        }
    }

    #[test]
    fn a_nucleus_is_the_smallest_one_with_ties_by_token(logits in logits(), t in 0.2f32..3.0, p in 0.01f64..1.0) {
        let (want, distance) = nucleus(&logits, t, p);
        let mut left = logits.clone();
        top_p(Path::detect(), &mut left, &row(Path::detect(), &logits, t), p as f32);
        // Within rounding of a border either side may be right.
        prop_assert!(kept(&left) == want || distance < 1e-5, "{:?}, not {want:?}", kept(&left));
    }

    #[test]
    fn top_k_keeps_all_that_equal_the_last(logits in logits(), k in 1usize..60) {
        let mut left = logits.clone();
        top_k(&mut left, k);
        for (i, z) in logits.iter().enumerate().filter(|(_, z)| **z > NOT) {
            let larger = logits.iter().filter(|other| *other > z).count();
            prop_assert_eq!(left[i] > NOT, larger < k, "token {} with {} larger", i, larger);
        }
    }
}

#[test]
fn a_flat_distribution_over_several_chunks_is_cut_by_token() {
    let n = 2 * CHUNK + 100;
    let mut logits = vec![1.5f32; n];
    let stats = row(Path::detect(), &logits, 1.0);
    top_p(Path::detect(), &mut logits, &stats, 0.5);
    assert_eq!(kept(&logits), (0..n / 2).collect::<Vec<_>>());
}

#[test]
fn penalties_count_what_was_made() {
    let logits = [2.0, -2.0, 1.0, 1.0, 0.0];
    let penalties = Penalties { repetition: 2.0, presence: 0.25, frequency: 0.5 };
    let mut left = logits;
    // Tokens 0 and 1 are the prompt, of the others only 2 was made, twice; 99 is in no vocabulary.
    penalties.apply(&mut left, &[0, 1, 0, 99, 2, 2], 2);
    assert_eq!(left, [1.0, -4.0, 0.5 - 1.0 - 0.25, 1.0, 0.0]);
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
