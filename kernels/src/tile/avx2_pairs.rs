//! Pairs of bf16 in 256-bit registers, up to 1 x 48, 2 x 32, 3 x 24 or 4 x 16, by multiply-adds: for machines without dot products of pairs.
//!
//! A multiply-add gives the bits of C2 unless its result is no larger than the smallest normal number, 2^-126. Every number is a
//! whole multiple of its grain, the weight of its last bit. Where the grains of all products and of the C that was there are
//! at least 2^-126, so is that of every sum: none lies between zero and 2^-126, and none is rounded up to it. What cannot be
//! known to be so from its operands is computed again under watch; what then has such a result, by the definition.
use super::{Ahead, LINE, Store, Tile, pairs};
use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T1, _mm_prefetch, _mm256_add_ps, _mm256_and_si256, _mm256_broadcast_ss, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_min_epu16, _mm256_min_epu32,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_storeu_si256,
    _mm256_sub_epi16, _mm256_sub_epi32,
};

/// What a tile looks at while it computes.
type Watch = u8;
/// The operands are known: nothing but the C that was there.
const BEGINNINGS: Watch = 0;
/// The values of B too.
const OPERANDS: Watch = 1;
/// Every result.
const RESULTS: Watch = 2;

/// Exponents are counted from 1, that of numbers below the smallest normal one too. The grain of a bf16 of exponent e is
/// 2^(e - 134), of a product of two of them 2^(e + f - 268): at least 2^-126 from here on.
const PRODUCT: u32 = 142;
/// As bits, the smallest `f32` whose grain is at least 2^-126 whatever its last bits are.
const COARSE: u32 = 24 << 23;
/// As bits, the smallest normal `f32`.
const SMALLEST: u32 = 1 << 23;

/// `H` half vectors of 8 columns from half vector `first`; `least` is the smallest bf16 of A but zero, as bits; asks for `LINES`
/// lines a step. `false`, and nothing is stored: not known to have C2's bits.
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::needless_range_loop, reason = "the index is also a stride's factor")]
unsafe fn tile<const R: usize, const H: usize, const WATCH: Watch, const LINES: usize>(
    least: u32,
    first: usize,
    store: Store,
    t: &Tile,
    ahead: Ahead,
) -> bool {
    let offset = |half: usize, vec: usize| (half / 2) * vec + (half % 2) * 8;
    let mut acc = [[_mm256_setzero_ps(); H]; R];
    // Smallest so far, less one, so that zeros count as the largest.
    let mut results = _mm256_set1_epi32(-1);
    let mut operands = _mm256_set1_epi16(-1);
    // SAFETY: the caller's promise about the tile's strides.
    unsafe {
        if store == Store::Chain {
            for r in 0..R {
                for h in 0..H {
                    acc[r][h] = _mm256_loadu_ps(t.c.add(r * t.c_row + offset(first + h, t.c_vec)));
                    results = _mm256_min_epu32(results, before(acc[r][h]));
                }
            }
        }
        let mut halves = [0; H];
        for h in 0..H {
            halves[h] = offset(first + h, t.b_vec);
        }
        let (mut a, mut b, mut next) = (t.a, t.b, ahead.start);
        for _ in 0..t.k {
            for line in 0..LINES {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line * LINE).cast());
            }
            if LINES > 0 {
                next = next.wrapping_add(ahead.step);
            }
            let mut columns = [_mm256_setzero_ps(); H];
            for h in 0..H {
                let words = _mm256_loadu_si256(b.add(halves[h]).cast());
                if WATCH == OPERANDS {
                    operands = _mm256_min_epu16(operands, halves_before(words));
                }
                columns[h] = high(words);
            }
            for r in 0..R {
                let value = high(_mm256_castps_si256(_mm256_broadcast_ss(&*a.add(r * t.a_row))));
                for h in 0..H {
                    acc[r][h] = _mm256_fmadd_ps(value, columns[h], acc[r][h]);
                    if WATCH == RESULTS {
                        results = _mm256_min_epu32(results, before(acc[r][h]));
                    }
                }
            }
            for h in 0..H {
                columns[h] = low(_mm256_loadu_si256(b.add(halves[h]).cast()));
            }
            for r in 0..R {
                let value = low(_mm256_castps_si256(_mm256_broadcast_ss(&*a.add(r * t.a_row))));
                for h in 0..H {
                    acc[r][h] = _mm256_fmadd_ps(value, columns[h], acc[r][h]);
                    if WATCH == RESULTS {
                        results = _mm256_min_epu32(results, before(acc[r][h]));
                    }
                }
            }
            a = a.wrapping_add(t.a_k);
            b = b.wrapping_add(t.b_k);
        }
        let (results, operands) = (lowest_word(results), lowest_half(operands));
        let known = match WATCH {
            RESULTS => results >= SMALLEST,
            OPERANDS => results >= COARSE - 1 && coarse(least, operands.saturating_add(1)),
            _ => results >= COARSE - 1,
        };
        if known {
            for r in 0..R {
                for h in 0..H {
                    let c = t.c.add(r * t.c_row + offset(first + h, t.c_vec));
                    let value = if store == Store::Add { _mm256_add_ps(_mm256_loadu_ps(c), acc[r][h]) } else { acc[r][h] };
                    _mm256_storeu_ps(c, value);
                }
            }
        }
        known
    }
}

/// Whether products of two bf16 of these sizes or larger have a grain of at least 2^-126.
fn coarse(a: u32, b: u32) -> bool {
    (a >> 7).max(1) + (b >> 7).max(1) >= PRODUCT
}

#[inline]
#[target_feature(enable = "avx2")]
fn high(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32.cast_signed())))
}

#[inline]
#[target_feature(enable = "avx2")]
fn low(words: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
}

/// The sizes as bits, less one.
#[inline]
#[target_feature(enable = "avx2")]
fn before(values: __m256) -> __m256i {
    let sizes = _mm256_and_si256(_mm256_castps_si256(values), _mm256_set1_epi32(i32::MAX));
    _mm256_sub_epi32(sizes, _mm256_set1_epi32(1))
}

/// As [`before`] for both halves of each word.
#[inline]
#[target_feature(enable = "avx2")]
fn halves_before(words: __m256i) -> __m256i {
    _mm256_sub_epi16(_mm256_and_si256(words, _mm256_set1_epi16(i16::MAX)), _mm256_set1_epi16(1))
}

#[inline]
#[target_feature(enable = "avx2")]
fn lowest_word(words: __m256i) -> u32 {
    let mut out = [0u32; 8];
    // SAFETY: 256 bits either way.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), words) };
    out.into_iter().fold(u32::MAX, u32::min)
}

#[inline]
#[target_feature(enable = "avx2")]
fn lowest_half(words: __m256i) -> u32 {
    let mut out = [0u16; 16];
    // SAFETY: 256 bits either way.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), words) };
    u32::from(out.into_iter().fold(u16::MAX, u16::min))
}

/// The smallest bf16 of A but zero, as bits.
///
/// # Safety
/// As [`super::run`].
#[target_feature(enable = "avx2")]
unsafe fn least(rows: usize, t: &Tile) -> u32 {
    let mut wide = _mm256_set1_epi16(-1);
    let mut rest = u16::MAX;
    for r in 0..rows {
        let mut k = 0;
        // SAFETY: elements of the caller's A.
        unsafe {
            let row = t.a.add(r * t.a_row);
            while t.a_k == 1 && k + 8 <= t.k {
                wide = _mm256_min_epu16(wide, halves_before(_mm256_loadu_si256(row.add(k).cast())));
                k += 8;
            }
            while k < t.k {
                let word = row.add(k * t.a_k).cast::<u32>().read();
                for half in [word, word >> 16] {
                    rest = rest.min(((half & 0x7fff) as u16).wrapping_sub(1));
                }
                k += 1;
            }
        }
    }
    lowest_half(wide).min(u32::from(rest)).saturating_add(1)
}

/// The same part by the definition.
///
/// # Safety
/// As [`super::run`].
#[cold]
#[target_feature(enable = "avx2,fma")]
unsafe fn defined(rows: usize, halves: std::ops::Range<usize>, store: Store, t: &Tile) {
    for half in halves {
        let offset = |vec: usize| (half / 2) * vec + (half % 2) * 8;
        // SAFETY: 8 columns of the caller's tile.
        unsafe {
            let part = Tile { b: t.b.add(offset(t.b_vec)), c: t.c.add(offset(t.c_vec)), ..*t };
            pairs::portable::<8>(rows, 1, store, &part);
        }
    }
}

/// See [`super::run_ahead`].
///
/// # Safety
/// As there, and the machine has AVX2 and FMA.
pub(super) unsafe fn run_ahead(rows: usize, vecs: usize, store: Store, t: &Tile, ahead: Ahead) {
    // SAFETY: the caller's promise.
    let least = unsafe { least(rows, t) };
    // A few more sums at a time than a multiply-add takes steps, and the operands beside them in registers.
    let (halves, widest) = (2 * vecs, [6, 4, 3, 2][rows.clamp(1, 4) - 1]);
    let parts = rows.div_ceil(4) * halves.div_ceil(widest);
    let (mut first, mut index) = (0, 0);
    while first < halves {
        let h = (halves - first).min(widest);
        let (mut watch, mut row) = (OPERANDS, 0);
        while row < rows {
            let r = (rows - row).min(4);
            let ahead = ahead.share(index, parts, t.k);
            macro_rules! part {
                ($($r:literal x $h:literal)*) => {
                    match (r, h) {
                        // SAFETY: a part of the caller's tile.
                        $(($r, $h) => unsafe {
                            let part = Tile { a: t.a.add(row * t.a_row), c: t.c.add(row * t.c_row), ..*t };
                            let known = match (watch, ahead.step / LINE) {
                                (BEGINNINGS, 0) => tile::<$r, $h, BEGINNINGS, 0>(least, first, store, &part, ahead),
                                (BEGINNINGS, 1) => tile::<$r, $h, BEGINNINGS, 1>(least, first, store, &part, ahead),
                                (BEGINNINGS, _) => tile::<$r, $h, BEGINNINGS, 2>(least, first, store, &part, ahead),
                                (OPERANDS, 0) => tile::<$r, $h, OPERANDS, 0>(least, first, store, &part, ahead),
                                (OPERANDS, 1) => tile::<$r, $h, OPERANDS, 1>(least, first, store, &part, ahead),
                                (OPERANDS, _) => tile::<$r, $h, OPERANDS, 2>(least, first, store, &part, ahead),
                                _ => false,
                            };
                            if !known && !tile::<$r, $h, RESULTS, 0>(least, first, store, &part, ahead) {
                                defined($r, first..first + $h, store, &part);
                            }
                            watch = if known { BEGINNINGS } else { RESULTS };
                        },)*
                        _ => debug_assert!(false, "{r} x {h}"),
                    }
                };
            }
            part!(1 x 1  1 x 2  1 x 3  1 x 4  1 x 5  1 x 6  2 x 1  2 x 2  2 x 3  2 x 4
                  3 x 1  3 x 2  3 x 3  4 x 1  4 x 2);
            row += r;
            index += 1;
        }
        first += h;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a tile of 3 x 24 is known to be right by its operands, and by its results.
    fn known(a: f32, b: f32, c: f32) -> (bool, bool) {
        let pair = |x: f32| f32::from_bits(x.to_bits() >> 16 | x.to_bits() & 0xffff_0000);
        let (a, b, mut c) = ([pair(a); 3 * 9], [pair(b); 9 * 24], [c; 3 * 24]);
        let tile_of = |c: &mut [f32]| Tile {
            k: 9,
            a: a.as_ptr(),
            a_row: 9,
            a_k: 1,
            b: b.as_ptr(),
            b_k: 24,
            b_vec: 16,
            c: c.as_mut_ptr(),
            c_row: 24,
            c_vec: 16,
        };
        let before = c;
        // SAFETY: A is 3 rows of 9 words, B 9 rows of 24, C 3 rows of 24; the caller has found the instructions.
        unsafe {
            let operands =
                tile::<3, 3, OPERANDS, 0>(least(3, &tile_of(&mut c)), 0, Store::Chain, &tile_of(&mut c), Ahead::NOTHING);
            assert!(operands || c == before, "what is not known is not stored");
            c = before;
            (operands, tile::<3, 3, RESULTS, 0>(0, 0, Store::Chain, &tile_of(&mut c), Ahead::NOTHING))
        }
    }

    #[test]
    fn common_operands_are_computed_once_and_small_ones_under_watch() {
        if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
            return eprintln!("SKIPPED: this machine has no AVX2");
        }
        let power = |e: i32| 2f32.powi(e);
        assert_eq!(known(1.0, 0.01, 3.0), (true, true));
        assert_eq!(known(-power(-60), power(-40), 0.0), (true, true), "gradients of unlikely tokens");
        assert_eq!(known(power(-80), power(-32), 0.0), (true, true), "the grain of a product is 2^-126");
        assert_eq!(known(power(-80), power(-33), 0.0), (false, true));
        assert_eq!(known(1.0, 1.0, power(-104)), (false, true), "C that was there");
        assert_eq!(known(power(-80), power(-50), 0.0), (false, false), "results below the smallest normal number");
        assert_eq!(known(power(-80), -power(-50), power(-125)), (false, false), "and where only a later one is");
        assert_eq!(known(0.0, power(-120), 0.0), (true, true), "zeros are no small numbers");
    }
}
