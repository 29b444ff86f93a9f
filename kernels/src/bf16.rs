//! bf16, the upper half of an `f32`, and pairs of them in one word.
//!
//! Invariant **F1**: a value is rounded to the nearest bf16, ties to even; numbers below the smallest normal one become a zero
//! of the same sign, so that no pair ever holds one and it cannot matter how an instruction treats them. Infinities and NaN
//! stay what they are.
use crate::Cpu;
use crate::path::kernel;

/// The nearest bf16 in the low 16 bits.
#[inline(always)]
#[must_use]
pub fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let flushed = if x.abs() < f32::MIN_POSITIVE { bits >> 31 << 15 } else { rounded };
    if x.is_nan() { bits >> 16 | 0x40 } else { flushed }
}

/// The value of a bf16 in the low 16 bits.
#[inline(always)]
#[must_use]
pub fn widen(half: u32) -> f32 {
    f32::from_bits(half << 16)
}

/// Two values that follow each other along `k`.
#[inline(always)]
#[must_use]
pub fn pair(first: f32, second: f32) -> u32 {
    round(first) | round(second) << 16
}

/// The value at an even (0) or odd (1) place of a pair.
#[inline(always)]
#[must_use]
pub fn half(word: u32, odd: usize) -> f32 {
    widen(word >> (16 * odd) & 0xffff)
}

/// Rows of `inner` values as rows of `inner / 2` (rounded up) pairs, the last one of an odd row with a zero behind.
///
/// # Panics
/// When a length does not fit.
pub fn pack_rows(cpu: &Cpu, x: &[f32], inner: usize, words: &mut [u32]) {
    let width = inner.div_ceil(2);
    let rows = x.len() / inner;
    assert_eq!((x.len(), words.len()), (rows * inner, rows * width), "rows of {inner}");
    // A few rows are sooner done than handed out.
    let part = if x.len() <= SMALL { rows.max(1) } else { (SMALL / inner).max(1) };
    let mut jobs: Vec<_> = x.chunks(part * inner).zip(words.chunks_mut(part * width)).collect();
    cpu.pool().each(&mut jobs, |_, (x, words)| round_rows(cpu.path(), x, inner, words));
}

/// Values that one task rounds.
const SMALL: usize = 1 << 14;

kernel! {
    fn round_rows(x: &[f32], inner: usize, words: &mut [u32]) {
        for (x, words) in x.chunks_exact(inner).zip(words.chunks_exact_mut(inner.div_ceil(2))) {
            let (pairs, rest) = x.as_chunks::<2>();
            for (word, [first, second]) in words.iter_mut().zip(pairs) {
                *word = pair(*first, *second);
            }
            if let ([last], Some(word)) = (rest, words.last_mut()) {
                *word = pair(*last, 0.0);
            }
        }
    }
}

kernel! {
    /// `words[i]` = the pair of `first[i]` and `second[i]`.
    pub(crate) fn interleave(first: &[f32], second: &[f32], words: &mut [u32]) {
        for ((word, first), second) in words.iter_mut().zip(first).zip(second) {
            *word = pair(*first, *second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{half, pack_rows, pair, round, widen};
    use crate::testing::{machines, noise};

    #[test]
    fn rounding_is_to_nearest_even_without_small_numbers() {
        let cases = [
            (1.0, 0x3f80),
            (-2.5, 0xc020),
            (1.0 + 1.0 / 256.0, 0x3f80), // half way: down to even
            (1.0 + 3.0 / 256.0, 0x3f82), // half way: up to even
            (1.0 + 1.001 / 256.0, 0x3f81),
            (f32::MAX, 0x7f80),
            (f32::MIN_POSITIVE, 0x0080),
            (f32::MIN_POSITIVE / 2.0, 0x0000),
            (-f32::MIN_POSITIVE / 2.0, 0x8000),
            (f32::INFINITY, 0x7f80),
        ];
        for (x, want) in cases {
            assert_eq!(round(x), want, "{x}");
        }
        assert!(widen(round(f32::from_bits(0x7fff_ffff))).is_nan() && widen(round(f32::from_bits(0x7f80_0001))).is_nan());
        // The nearest: no other bf16 is nearer, for any upper half and any place between two of them.
        for bits in (0x0080_0000..0x7f00_0000u32).step_by(0x1_2345) {
            let x = f32::from_bits(bits);
            let got = f64::from(widen(round(x)));
            let other = [bits >> 16, (bits >> 16) + 1].map(|half| (f64::from(widen(half)) - f64::from(x)).abs());
            assert_eq!((got - f64::from(x)).abs(), other[0].min(other[1]), "{x}");
        }
    }

    #[test]
    fn rows_end_in_a_zero_where_they_are_odd() {
        for cpu in machines() {
            for (rows, inner) in [(1, 1), (3, 5), (70, 999), (2, 64)] {
                let x = noise(1, rows * inner);
                let width = inner.div_ceil(2);
                let mut words = vec![u32::MAX; rows * width];
                pack_rows(&cpu, &x, inner, &mut words);
                for (row, words) in x.chunks(inner).zip(words.chunks(width)) {
                    for k in 0..2 * width {
                        let want = row.get(k).map_or(0.0, |x| widen(round(*x)));
                        assert_eq!(half(words[k / 2], k % 2), want);
                    }
                }
            }
        }
        assert_eq!(pair(1.0, 2.0), 0x4000_3f80);
    }
}
