//! Groups of int8 in 512-bit registers with dot products of four bytes, up to 4 x 48.
//!
//! VPDPBUSD adds four products of 16 bits to a sum of 32 and saturates nowhere, so that sums are exact.
use super::{Store, Tile};
use crate::int8::{BEGINNING, ROW_BLOCK, SCALE, STEPS, WEIGHT_BLOCK};
use std::arch::x86_64::{
    _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

#[target_feature(enable = "avx512f,avx512vnni")]
#[expect(clippy::needless_range_loop, reason = "the index is also a stride's factor")]
unsafe fn tile<const R: usize, const V: usize>(store: Store, t: &Tile) {
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    // SAFETY: the caller's promise about the tile's strides.
    unsafe {
        if store == Store::Chain {
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = _mm512_loadu_ps(t.c.add(r * t.c_row + v * t.c_vec));
                }
            }
        }
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k / WEIGHT_BLOCK {
            let mut sums = [[_mm512_setzero_si512(); V]; R];
            for r in 0..R {
                sums[r] = [_mm512_set1_epi32(a.add(r * t.a_row + BEGINNING).cast::<i32>().read()); V];
            }
            for step in 0..STEPS {
                let mut columns = [_mm512_setzero_si512(); V];
                for v in 0..V {
                    columns[v] = _mm512_loadu_si512(b.add(step * t.b_k + v * t.b_vec).cast());
                }
                for r in 0..R {
                    let value = _mm512_set1_epi32(a.add(r * t.a_row + step).cast::<i32>().read());
                    for v in 0..V {
                        sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], columns[v], value);
                    }
                }
            }
            for v in 0..V {
                let scales = _mm512_loadu_ps(b.add(STEPS * t.b_k + v * t.b_vec));
                for r in 0..R {
                    let own = _mm512_set1_ps(*a.add(r * t.a_row + SCALE));
                    let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][v]), own);
                    acc[r][v] = _mm512_fmadd_ps(sum, scales, acc[r][v]);
                }
            }
            a = a.wrapping_add(ROW_BLOCK);
            b = b.wrapping_add(WEIGHT_BLOCK * t.b_k);
        }
        for r in 0..R {
            for v in 0..V {
                let c = t.c.add(r * t.c_row + v * t.c_vec);
                let old = if store == Store::Add { Some(_mm512_loadu_ps(c)) } else { None };
                _mm512_storeu_ps(c, old.map_or(acc[r][v], |old| _mm512_add_ps(old, acc[r][v])));
            }
        }
    }
}

/// See [`super::run`].
///
/// # Safety
/// As there, and the machine has AVX-512 F and VNNI.
pub(super) unsafe fn run(rows: usize, vecs: usize, store: Store, t: &Tile) {
    let mut row = 0;
    while row < rows {
        let r = (rows - row).min(4);
        let mut first = 0;
        while first < vecs {
            let v = (vecs - first).min(3);
            macro_rules! part {
                ($($r:literal x $v:literal)*) => {
                    match (r, v) {
                        // SAFETY: a part of the caller's tile.
                        $(($r, $v) => unsafe {
                            let (a, b) = (t.a.add(row * t.a_row), t.b.add(first * t.b_vec));
                            let c = t.c.add(row * t.c_row + first * t.c_vec);
                            tile::<$r, $v>(store, &Tile { a, b, c, ..*t });
                        },)*
                        _ => debug_assert!(false, "{r} x {v}"),
                    }
                };
            }
            part!(1 x 1  1 x 2  1 x 3  2 x 1  2 x 2  2 x 3  3 x 1  3 x 2  3 x 3  4 x 1  4 x 2  4 x 3);
            first += v;
        }
        row += r;
    }
}
