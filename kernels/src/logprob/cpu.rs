//! Chunks in 16 lanes, rows from chunks.
use super::CHUNK;
use crate::Path;
use crate::lanes::{Lanes, block, blocks, each, larger, max, splat, sum};
use crate::math::{exp, exp16, ln};
use crate::path::kernel;

/// What one chunk of a row contributes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChunkStats {
    /// Largest `z`.
    pub max: f32,
    /// Sum of `e^(z - max)`.
    pub sum: f32,
    /// Sum of `e^(z - max) (z - max)`.
    pub dot: f32,
}

/// The distribution of one row of logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowStats {
    /// Logits were divided by it.
    pub temperature: f32,
    /// Largest `z`.
    pub max: f32,
    /// ln of the sum of `e^(z - max)`: not finite when a logit was NaN or +infinity, or all were -infinity.
    pub log_sum: f32,
    /// Entropy in nats.
    pub entropy: f32,
}

impl RowStats {
    /// log-softmax of the token with this logit.
    #[must_use]
    #[inline(always)]
    pub fn logp(&self, logit: f32) -> f32 {
        (logit / self.temperature - self.max) - self.log_sum
    }
}

/// Statistics of a whole row of logits.
#[must_use]
pub fn row(path: Path, logits: &[f32], temperature: f32) -> RowStats {
    combine(logits.chunks(CHUNK).map(|part| chunk(path, part, temperature)), temperature)
}

kernel! {
    /// Statistics of up to [`CHUNK`] logits.
    #[must_use]
    pub fn chunk(logits: &[f32], temperature: f32) -> ChunkStats {
        let mut largest = splat(f32::NEG_INFINITY);
        for index in 0..blocks(logits.len()) {
            let z = scaled(block(logits, index, f32::NEG_INFINITY), temperature);
            largest = each(|i| larger(largest[i], z[i]));
        }
        let largest = max(largest);
        // Without a number above -infinity the sum stays 0 (or becomes NaN by a NaN).
        let base = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let (mut sums, mut dots) = (splat(0.0), splat(0.0));
        for index in 0..blocks(logits.len()) {
            let z = scaled(block(logits, index, f32::NEG_INFINITY), temperature);
            let d = each(|i| z[i] - base);
            let e = exp16(d);
            sums = each(|i| sums[i] + e[i]);
            // A token of probability zero adds nothing, even where its z is -infinity.
            let finite = each(|i| if e[i] == 0.0 { 0.0 } else { d[i] });
            dots = each(|i| e[i].mul_add(finite[i], dots[i]));
        }
        ChunkStats { max: largest, sum: sum(sums), dot: sum(dots) }
    }
}

/// `z` of 16 logits; dividing by 1 changes nothing.
#[inline(always)]
fn scaled(logits: Lanes, temperature: f32) -> Lanes {
    if temperature == 1.0 { logits } else { each(|i| logits[i] / temperature) }
}

/// A row from its chunks, in order.
#[must_use]
pub fn combine(chunks: impl Iterator<Item = ChunkStats> + Clone, temperature: f32) -> RowStats {
    let largest = chunks.clone().fold(f32::NEG_INFINITY, |m, c| larger(m, c.max));
    let (mut sum, mut dot) = (0.0f64, 0.0f64);
    for c in chunks.filter(|c| c.sum != 0.0) {
        let shift = c.max - largest;
        let (weight, shift) = (f64::from(exp(shift)), f64::from(shift));
        sum = weight.mul_add(f64::from(c.sum), sum);
        dot = weight.mul_add(shift.mul_add(f64::from(c.sum), f64::from(c.dot)), dot);
    }
    let log_sum = ln(sum);
    RowStats { temperature, max: largest, log_sum: log_sum as f32, entropy: (log_sum - dot / sum) as f32 }
}
