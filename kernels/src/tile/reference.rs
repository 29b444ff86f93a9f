//! The definition, one element at a time.
use super::Store;
use crate::int8::{BEGINNING, ROW_BLOCK, SCALE, STEPS, WEIGHT_BLOCK};

/// `c[r][j]` of `rows x columns` from dense `a [rows, k]` and `b [k, columns]`.
pub(super) fn matrix(rows: usize, k: usize, columns: usize, a: &[f32], b: &[f32], c: &mut [f32], store: Store) {
    for r in 0..rows {
        for j in 0..columns {
            let old = c[r * columns + j];
            let mut acc = if store == Store::Chain { old } else { 0.0 };
            for p in 0..k {
                acc = a[r * k + p].mul_add(b[p * columns + j], acc);
            }
            c[r * columns + j] = if store == Store::Add { old + acc } else { acc };
        }
    }
}

/// As [`matrix`] for pairs of bf16 along `k`: every step by its definition in f64.
pub(super) fn pairs(rows: usize, k: usize, columns: usize, a: &[u32], b: &[u32], c: &mut [f32], store: Store) {
    let halves = |word: u32| [word & 0xffff_0000, word << 16].map(f32::from_bits);
    for r in 0..rows {
        for j in 0..columns {
            let old = c[r * columns + j];
            let mut acc = if store == Store::Chain { old } else { 0.0 };
            for p in 0..k {
                for (a, b) in halves(a[r * k + p]).into_iter().zip(halves(b[p * columns + j])) {
                    acc = step(a, b, acc);
                }
            }
            c[r * columns + j] = if store == Store::Add { old + acc } else { acc };
        }
    }
}

/// As [`matrix`] for int8: `a [rows][groups]` of [`ROW_BLOCK`] words, `b [groups][WEIGHT_BLOCK, columns]`, products and sums by
/// their definition in wide integers.
pub(super) fn groups(rows: usize, groups: usize, columns: usize, a: &[u32], b: &[u32], c: &mut [f32], store: Store) {
    for r in 0..rows {
        for j in 0..columns {
            let old = c[r * columns + j];
            let mut acc = if store == Store::Chain { old } else { 0.0 };
            for g in 0..groups {
                let a = &a[(r * groups + g) * ROW_BLOCK..][..ROW_BLOCK];
                let b = |line: usize| b[(g * WEIGHT_BLOCK + line) * columns + j];
                let product =
                    |k: usize| i64::from(b(k / 4).to_le_bytes()[k % 4]) * i64::from(a[k / 4].to_le_bytes()[k % 4] as i8);
                let sum = (0..4 * STEPS).map(product).sum::<i64>() + i64::from(a[BEGINNING].cast_signed());
                acc = (sum as f32 * f32::from_bits(a[SCALE])).mul_add(f32::from_bits(b(STEPS)), acc);
            }
            c[r * columns + j] = if store == Store::Add { old + acc } else { acc };
        }
    }
}

/// `a b + acc` rounded to 24 bits as if the exponent had no bound; what is below the smallest normal number becomes zero.
fn step(a: f32, b: f32, acc: f32) -> f32 {
    let plain = a.mul_add(b, acc);
    if plain.abs() > 1e-36 || plain == 0.0 {
        return plain;
    }
    // So near to zero no bits of the sum lie beyond f64's.
    let bits = f64::from(a).mul_add(f64::from(b), f64::from(acc)).to_bits();
    let (kept, rest) = (bits & !0x1fff_ffff, bits & 0x1fff_ffff);
    let up = rest > 0x1000_0000 || (rest == 0x1000_0000 && kept & 0x2000_0000 != 0);
    let rounded = f64::from_bits(if up { kept + 0x2000_0000 } else { kept });
    if rounded.abs() < f64::from(f32::MIN_POSITIVE) { 0.0f32.copysign(plain) } else { rounded as f32 }
}
