//! Groups of int8 in 256-bit registers, up to 2 x 24, without dot products of bytes.
//!
//! VPMADDUBSW would do, but it saturates at 16 bits. Bytes are widened to 16 bits instead, those at even and at odd places of
//! their words apart, and VPMADDWD adds two products of 32 bits, exactly.
use super::{Store, Tile};
use crate::int8::{BEGINNING, ROW_BLOCK, SCALE, STEPS, WEIGHT_BLOCK};
use std::arch::x86_64::{
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_slli_epi16, _mm256_srai_epi16, _mm256_srli_epi16, _mm256_storeu_ps,
};

/// `H` half vectors of 8 columns from half vector `first`.
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::needless_range_loop, reason = "the index is also a stride's factor")]
unsafe fn tile<const R: usize, const H: usize>(first: usize, store: Store, t: &Tile) {
    let offset = |half: usize, vec: usize| (half / 2) * vec + (half % 2) * 8;
    let low = _mm256_set1_epi16(0xff);
    let mut acc = [[_mm256_setzero_ps(); H]; R];
    // SAFETY: the caller's promise about the tile's strides.
    unsafe {
        if store == Store::Chain {
            for r in 0..R {
                for h in 0..H {
                    acc[r][h] = _mm256_loadu_ps(t.c.add(r * t.c_row + offset(first + h, t.c_vec)));
                }
            }
        }
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k / WEIGHT_BLOCK {
            let mut sums = [[_mm256_setzero_si256(); H]; R];
            for r in 0..R {
                sums[r] = [_mm256_set1_epi32(a.add(r * t.a_row + BEGINNING).cast::<i32>().read()); H];
            }
            for step in 0..STEPS {
                let mut values = [[_mm256_setzero_si256(); 2]; R];
                for r in 0..R {
                    let word = _mm256_set1_epi32(a.add(r * t.a_row + step).cast::<i32>().read());
                    values[r] = [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(word)), _mm256_srai_epi16::<8>(word)];
                }
                for h in 0..H {
                    let columns = _mm256_loadu_si256(b.add(step * t.b_k + offset(first + h, t.b_vec)).cast());
                    let (even, odd) = (_mm256_and_si256(columns, low), _mm256_srli_epi16::<8>(columns));
                    for r in 0..R {
                        let two = _mm256_madd_epi16(even, values[r][0]);
                        let other = _mm256_madd_epi16(odd, values[r][1]);
                        sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_add_epi32(two, other));
                    }
                }
            }
            for h in 0..H {
                let scales = _mm256_loadu_ps(b.add(STEPS * t.b_k + offset(first + h, t.b_vec)));
                for r in 0..R {
                    let own = _mm256_set1_ps(*a.add(r * t.a_row + SCALE));
                    let sum = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[r][h]), own);
                    acc[r][h] = _mm256_fmadd_ps(sum, scales, acc[r][h]);
                }
            }
            a = a.wrapping_add(ROW_BLOCK);
            b = b.wrapping_add(WEIGHT_BLOCK * t.b_k);
        }
        for r in 0..R {
            for h in 0..H {
                let c = t.c.add(r * t.c_row + offset(first + h, t.c_vec));
                let value = if store == Store::Add { _mm256_add_ps(_mm256_loadu_ps(c), acc[r][h]) } else { acc[r][h] };
                _mm256_storeu_ps(c, value);
            }
        }
    }
}

/// See [`super::run`].
///
/// # Safety
/// As there, and the machine has AVX2 and FMA.
pub(super) unsafe fn run(rows: usize, vecs: usize, store: Store, t: &Tile) {
    let halves = 2 * vecs;
    let mut row = 0;
    while row < rows {
        let r = (rows - row).min(2);
        let mut first = 0;
        while first < halves {
            let h = (halves - first).min(3);
            macro_rules! part {
                ($($r:literal x $h:literal)*) => {
                    match (r, h) {
                        // SAFETY: a part of the caller's tile.
                        $(($r, $h) => unsafe {
                            let part = Tile { a: t.a.add(row * t.a_row), c: t.c.add(row * t.c_row), ..*t };
                            tile::<$r, $h>(first, store, &part);
                        },)*
                        _ => debug_assert!(false, "{r} x {h}"),
                    }
                };
            }
            part!(1 x 1  1 x 2  1 x 3  2 x 1  2 x 2  2 x 3);
            first += h;
        }
        row += r;
    }
}
