//! Symmetric int8 in groups: 32 values that follow each other along `k` share one `f32` scale.
//!
//! Invariants
//! - **Q1** with `m` the largest magnitude of a group, the scale is `m / 127` and a value is the integer nearest to
//!   `x (127 / m)`, ties to even: -127 to 127. The last group of a row is filled up with zeros.
//! - **Q2** a group whose `m` is below [`SMALLEST`] is all zeros with scale 0. One that holds an infinity or a NaN has the scale
//!   NaN, so that whatever is computed with it is seen to be broken.
//! - **Q3** a product of two groups is summed up in integers, exactly: at most 32 x 127 x 127, below 2^24, so that the sum is an
//!   `f32` as well. Instructions and order of such a sum cannot matter.
//!
//! Weights are kept as bytes `q + 128` without sign, activations as bytes `q` with sign, four along `k` in a word, the earliest
//! in the lowest byte: what x86's VPDPBUSD multiplies. What the 128 add to a sum, `128 (sum of q)`, an activation's group brings
//! along to be taken off.
use crate::Cpu;
use crate::linear::PANEL;
use crate::path::kernel;

/// Values that share a scale.
pub const GROUP: usize = 32;
/// Words of a group's values.
pub(crate) const STEPS: usize = GROUP / 4;
/// Words of a group of activations: its values, its scale and the integer that its sums begin with.
pub(crate) const ROW_BLOCK: usize = STEPS + 2;
/// Where in it the scale lies, as `f32`.
pub(crate) const SCALE: usize = STEPS;
/// Where in it the beginning of a sum lies, as `i32`: -128 times the sum of its values.
pub(crate) const BEGINNING: usize = STEPS + 1;
/// Words of a group of weights, by column: its values, then its scale.
pub(crate) const WEIGHT_BLOCK: usize = STEPS + 1;
/// Groups without a magnitude of this size count as zeros.
pub const SMALLEST: f32 = 1e-30;

/// The bits of a magnitude.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// The bits of infinity.
const INFINITY: u32 = 0x7f80_0000;
/// 1.5 x 2^23: adding it rounds to the nearest integer and leaves that in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Words that a row of activations takes.
#[must_use]
#[inline(always)]
pub fn row_words(inner: usize) -> usize {
    inner.div_ceil(GROUP) * ROW_BLOCK
}

/// Scale of a group, and what its values are multiplied by, from the bits of its largest magnitude.
#[inline(always)]
fn scales(largest: u32) -> (f32, f32) {
    let m = f32::from_bits(largest);
    let (scale, inverse) = if m < SMALLEST { (0.0, 0.0) } else { (m / 127.0, 127.0 / m) };
    if largest >= INFINITY { (f32::NAN, 0.0) } else { (scale, inverse) }
}

/// The integer nearest to a number of moderate size, ties to even; of a NaN any.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

/// Rows of `inner` values as rows of [`row_words`] words.
///
/// # Panics
/// When a length does not fit.
pub fn pack_rows(cpu: &Cpu, x: &[f32], inner: usize, words: &mut [u32]) {
    let (rows, width) = (x.len() / inner, row_words(inner));
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
        for (x, words) in x.chunks_exact(inner).zip(words.chunks_exact_mut(row_words(inner))) {
            for (x, block) in x.chunks(GROUP).zip(words.as_chunks_mut::<ROW_BLOCK>().0) {
                let mut values = [0.0; GROUP];
                values[..x.len()].copy_from_slice(x);
                round_group(&values, block);
            }
        }
    }
}

/// One group of activations.
#[inline(always)]
fn round_group(values: &[f32; GROUP], block: &mut [u32; ROW_BLOCK]) {
    let largest = values.iter().fold(0, |m: u32, x| m.max(x.to_bits() & MAGNITUDE));
    let (scale, inverse) = scales(largest);
    let mut bytes = [0i8; GROUP];
    for (byte, x) in bytes.iter_mut().zip(values) {
        *byte = (nearest(x * inverse) & 0xff) as u8 as i8;
    }
    let sum: i32 = bytes.iter().map(|q| i32::from(*q)).sum();
    for (word, four) in block.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(four.map(i8::cast_unsigned));
    }
    block[SCALE] = scale.to_bits();
    block[BEGINNING] = (-128 * sum).cast_unsigned();
}

kernel! {
    /// One group of weights from up to [`GROUP`] columns `[k, 48]` of a panel, as `[9, 48]` words.
    pub(crate) fn round_columns(columns: &[f32], block: &mut [u32]) {
        let columns = columns.as_chunks::<PANEL>().0;
        let lines = block.as_chunks_mut::<PANEL>().0;
        let mut largest = [0u32; PANEL];
        for column in columns {
            for (largest, x) in largest.iter_mut().zip(column) {
                *largest = (*largest).max(x.to_bits() & MAGNITUDE);
            }
        }
        let mut inverses = [0.0; PANEL];
        for lane in 0..PANEL {
            let (scale, inverse) = scales(largest[lane]);
            inverses[lane] = inverse;
            lines[STEPS][lane] = scale.to_bits();
        }
        for (step, line) in lines.iter_mut().take(STEPS).enumerate() {
            let mut words = [0x8080_8080; PANEL];
            for (byte, column) in columns.iter().skip(4 * step).take(4).enumerate() {
                for lane in 0..PANEL {
                    let q = nearest(column[lane] * inverses[lane]).wrapping_add(128).cast_unsigned() & 0xff;
                    words[lane] = words[lane] & !(0xff << (8 * byte)) | q << (8 * byte);
                }
            }
            *line = words;
        }
    }
}

/// The value of a weight's byte.
#[inline(always)]
pub(crate) fn value(word: u32, byte: usize, scale: u32) -> f32 {
    ((word >> (8 * byte) & 0xff) as f32 - 128.0) * f32::from_bits(scale)
}

#[cfg(test)]
mod tests {
    use super::{BEGINNING, GROUP, ROW_BLOCK, SCALE, SMALLEST, pack_rows, row_words};
    use crate::testing::{machines, noise};

    /// Integers, scale and beginning of one group.
    fn packed(cpu: &crate::Cpu, x: &[f32]) -> (Vec<i32>, f32, i32) {
        let mut words = vec![u32::MAX; row_words(x.len())];
        pack_rows(cpu, x, x.len(), &mut words);
        let bytes = words[..GROUP / 4].iter().flat_map(|word| word.to_le_bytes());
        let integers = bytes.map(|byte| i32::from(byte as i8)).collect();
        (integers, f32::from_bits(words[SCALE]), words[BEGINNING].cast_signed())
    }

    #[test]
    fn values_are_the_nearest_integers_of_their_groups_scale() {
        for cpu in machines() {
            let (q, scale, beginning) = packed(&cpu, &[1.27, -0.635, 0.005, 0.015, -1.27, 0.0]);
            assert_eq!((&q[..7], scale), (&[127, -64, 0, 2, -127, 0, 0][..], 1.27 / 127.0));
            assert_eq!(beginning, -128 * q.iter().sum::<i32>());
            let x = noise(7, GROUP);
            let (q, scale, _) = packed(&cpu, &x);
            assert!(q.iter().zip(&x).all(|(q, x)| (*q as f32 * scale - x).abs() <= 0.5001 * scale));
            assert!(q.iter().any(|q| q.abs() == 127));
        }
    }

    #[test]
    fn groups_of_a_row_and_rows_know_nothing_of_each_other() {
        let inner = 2 * GROUP + 5;
        let x = noise(3, 300 * inner);
        for cpu in machines() {
            let mut all = vec![0; 300 * row_words(inner)];
            pack_rows(&cpu, &x, inner, &mut all);
            for (row, words) in x.chunks(inner).zip(all.chunks(row_words(inner))).step_by(37) {
                for (group, block) in row.chunks(GROUP).zip(words.chunks(ROW_BLOCK)) {
                    let mut alone = vec![0; ROW_BLOCK];
                    pack_rows(&cpu, group, group.len(), &mut alone);
                    assert_eq!(block, alone);
                }
            }
        }
    }

    #[test]
    fn nothing_is_zero_and_broken_values_stay_broken() {
        for cpu in machines() {
            assert_eq!(packed(&cpu, &[0.0; 9]), (vec![0; GROUP], 0.0, 0));
            assert_eq!(packed(&cpu, &[SMALLEST / 2.0, -1e-40]), (vec![0; GROUP], 0.0, 0));
            assert_eq!(packed(&cpu, &[SMALLEST, 0.0]).0[..2], [127, 0]);
            let (q, scale, _) = packed(&cpu, &[f32::MAX, f32::MIN, f32::MAX / 254.0]);
            assert!(q[..3] == [127, -127, 0] && scale.is_finite(), "{q:?} {scale}");
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(packed(&cpu, &[1.0, bad, 2.0]).1.is_nan(), "{bad}");
            }
        }
    }
}
