//! The rows of a panel, whose columns lie together: a transposition.
//!
//! It moves values and computes nothing, so every path gives the same bits. The wide ones take squares of 8 x 8, whose rows and
//! columns are whole vectors; what is left at the edges is moved value by value.
#![expect(unsafe_code, reason = "loads and stores of whole vectors")]
use super::PANEL;
use crate::path::{Path, Set};

/// Columns that are taken together, so that all rows of them come from the first-level cache and are written in whole lines.
const COLUMNS: usize = 16;
/// Side of a square.
#[cfg(target_arch = "x86_64")]
const SQUARE: usize = 8;

/// Rows of one panel; as many as `rows` has room for.
pub(super) fn unpack_panel(path: Path, source: &[f32], inner: usize, rows: &mut [f32]) {
    match path.set() {
        // SAFETY: the path exists, so the machine has these instructions (P2).
        #[cfg(target_arch = "x86_64")]
        Set::Avx512Bf16 | Set::Avx512Vnni | Set::Avx512 | Set::Avx2 => unsafe { in_squares(source, inner, rows) },
        _ => one_by_one(source, inner, 0..inner, 0, rows),
    }
}

/// Columns `columns` of the rows from `first` on.
fn one_by_one(source: &[f32], inner: usize, columns: std::ops::Range<usize>, first: usize, rows: &mut [f32]) {
    for begin in columns.clone().step_by(COLUMNS) {
        let some = &source[begin * PANEL..(begin + COLUMNS).min(columns.end) * PANEL];
        for (lane, row) in rows.chunks_exact_mut(inner).enumerate().skip(first) {
            for (value, column) in row[begin..].iter_mut().zip(some.chunks_exact(PANEL)) {
                *value = column[lane];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn in_squares(source: &[f32], inner: usize, rows: &mut [f32]) {
    let (whole_rows, whole_columns) = (rows.len() / inner / SQUARE * SQUARE, inner / SQUARE * SQUARE);
    for begin in (0..whole_columns).step_by(COLUMNS) {
        for lane in (0..whole_rows).step_by(SQUARE) {
            for column in (begin..whole_columns.min(begin + COLUMNS)).step_by(SQUARE) {
                square(&source[column * PANEL + lane..], &mut rows[lane * inner + column..], inner);
            }
        }
    }
    one_by_one(source, inner, 0..whole_columns, whole_rows, rows);
    one_by_one(source, inner, whole_columns..inner, 0, rows);
}

/// Eight vectors, `PANEL` apart, as the columns of eight others, `inner` apart.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn square(source: &[f32], rows: &mut [f32], inner: usize) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
        _mm256_unpacklo_ps,
    };
    assert!(source.len() >= 7 * PANEL + SQUARE && rows.len() >= 7 * inner + SQUARE, "a square of 8 x 8");
    let (mut columns, mut pairs, mut fours) = ([_mm256_setzero_ps(); 8], [_mm256_setzero_ps(); 8], [_mm256_setzero_ps(); 8]);
    for (i, column) in columns.iter_mut().enumerate() {
        // SAFETY: the last of the eight vectors ends at the length that was asserted.
        *column = unsafe { _mm256_loadu_ps(source.as_ptr().add(i * PANEL)) };
    }
    // Two columns to a pair, two pairs to a four, in each half of the vectors; then across the halves.
    for i in 0..4 {
        let (a, b) = (columns[2 * i], columns[2 * i + 1]);
        (pairs[2 * i], pairs[2 * i + 1]) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    }
    for i in 0..4 {
        let at = i / 2 * 4 + i % 2;
        let (a, b) = (pairs[at], pairs[at + 2]);
        let to = i / 2 * 4 + i % 2 * 2;
        (fours[to], fours[to + 1]) = (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
    }
    for i in 0..4 {
        let (a, b) = (fours[i], fours[i + 4]);
        let (low, high) = (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(rows.as_mut_ptr().add(i * inner), low);
            _mm256_storeu_ps(rows.as_mut_ptr().add((i + 4) * inner), high);
        }
    }
}
