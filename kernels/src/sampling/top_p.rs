//! Nucleus sampling, top-p (1904.09751, eq. 2): the fewest most likely tokens that together have probability `p`.
//!
//! ```text
//! keep v  where  sum of P(w) over all w ranked before v  <  p,     ranked by P descending, equals by ascending token
//! ```
//!
//! The set of transformers' `TopPLogitsWarper` and of vLLM, which add up from the other end; where equals lie across the
//! border they leave the choice to an unstable sort, here the lower tokens stay. The most likely token always stays.
use super::cpu::total;
use crate::Path;
use crate::logprob::RowStats;
use crate::math::{exp, ln};
use crate::path::kernel;

/// Tokens that are ranked at first; a nucleus is mostly smaller. When it is not, eight times as many.
const FIRST: usize = 64;

/// Sets the logits of all tokens outside the nucleus to -infinity. `p` of 1 or more changes nothing. `stats` are the row's,
/// from [`logprob::row`](crate::logprob::row). O(vocab), at worst O(vocab log
/// vocab)
pub fn top_p(path: Path, logits: &mut [f32], stats: &RowStats, p: f32) {
    if p >= 1.0 {
        return;
    }
    let total = total(path, logits, stats);
    let wanted = f64::from(p) * total;
    // Tokens below this have less than half of 1 - p together: the nucleus is full without them.
    let least = ln((1.0 - f64::from(p)) * total / (2 * logits.len()) as f64) as f32;
    let likely = logits.iter().enumerate().filter(|(_, z)| **z / stats.temperature - stats.max >= least);
    let mut ranked: Vec<u64> = likely.map(|(token, z)| rank(*z, token as u32)).collect();
    let (mut mass, mut kept, mut width) = (0.0, 0, FIRST);
    while kept < ranked.len() && (mass < wanted || kept == 0) {
        let rest = &mut ranked[kept..];
        let next = width.min(rest.len());
        if next < rest.len() {
            rest.select_nth_unstable(next);
        }
        rest[..next].sort_unstable();
        let mut shares: Vec<f32> = rest[..next].iter().map(|key| logits[token_of(*key)]).collect();
        weigh(path, &mut shares, *stats);
        for share in shares {
            mass += f64::from(share);
            kept += 1;
            if mass >= wanted {
                break;
            }
        }
        width *= 8;
    }
    let last = kept.checked_sub(1).map_or(0, |last| ranked[last]);
    for (token, z) in logits.iter_mut().enumerate() {
        *z = if rank(*z, token as u32) > last { f32::NEG_INFINITY } else { *z };
    }
}

kernel! {
    /// `e^(z - max)` of logits, in place.
    fn weigh(logits: &mut [f32], stats: RowStats) {
        for z in logits {
            *z = exp(*z / stats.temperature - stats.max);
        }
    }
}

/// Ascending by descending logit, then by token.
fn rank(logit: f32, token: u32) -> u64 {
    // +0 and -0 are the same logit.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!ascending) << 32 | u64::from(token)
}

fn token_of(rank: u64) -> usize {
    (rank & u64::from(u32::MAX)) as usize
}
