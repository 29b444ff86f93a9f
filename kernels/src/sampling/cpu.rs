//! Draws over a row of logits, chunk by chunk in a fixed order.
use crate::Path;
use crate::lanes::{block, blocks, each, splat, sum};
use crate::logprob::{CHUNK, RowStats};
use crate::math::{exp, exp16};
use crate::path::kernel;

/// The token whose share of the distribution contains `u` (in (0, 1)), tokens in ascending order. A token whose
/// probability rounds to zero is never chosen. `stats` are the row's, from [`logprob::row`](crate::logprob::row).
#[must_use]
pub fn categorical(path: Path, logits: &[f32], stats: &RowStats, u: f64) -> u32 {
    let weights = weights(path, logits, stats);
    let target = u * weights.iter().sum::<f64>();
    let mut before = 0.0;
    let mut chosen = None;
    for (index, weight) in weights.iter().enumerate() {
        if *weight > 0.0 {
            chosen = Some((index, target - before));
            if before + weight > target {
                break;
            }
        }
        before += weight;
    }
    let Some((index, rest)) = chosen else { return argmax(logits) };
    let start = index * CHUNK;
    let part = &logits[start..logits.len().min(start + CHUNK)];
    (start + search(part, *stats, rest)) as u32
}

/// Sum of `e^(z - max)` over a row: what [`categorical`] draws from.
pub(super) fn total(path: Path, logits: &[f32], stats: &RowStats) -> f64 {
    weights(path, logits, stats).iter().sum()
}

/// The weight of each chunk.
fn weights(path: Path, logits: &[f32], stats: &RowStats) -> Vec<f64> {
    logits.chunks(CHUNK).map(|part| f64::from(weight(path, part, *stats))).collect()
}

kernel! {
    /// Sum of `e^(z - max)` of a chunk, in 16 lanes.
    fn weight(logits: &[f32], stats: RowStats) -> f32 {
        let mut sums = splat(0.0);
        for index in 0..blocks(logits.len()) {
            let v = block(logits, index, f32::NEG_INFINITY);
            let e = exp16(each(|i| v[i] / stats.temperature - stats.max));
            sums = each(|i| sums[i] + e[i]);
        }
        sum(sums)
    }
}

/// First token of a chunk at which the running sum passes `rest`; the last one with any weight when rounding lets it
/// pass none.
fn search(logits: &[f32], stats: RowStats, rest: f64) -> usize {
    let mut sum = 0.0f64;
    let mut last = 0;
    for (index, logit) in logits.iter().enumerate() {
        let share = exp(logit / stats.temperature - stats.max);
        if share > 0.0 {
            last = index;
            sum += f64::from(share);
            if sum > rest {
                break;
            }
        }
    }
    last
}

/// The lowest token among those with the largest logit; 0 for an empty or all-NaN row.
#[must_use]
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, logit) in logits.iter().enumerate() {
        if *logit > best.1 {
            best = (index as u32, *logit);
        }
    }
    best.0
}
