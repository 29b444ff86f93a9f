//! Up to 2 x 48 or 4 x 24 in 256-bit registers; larger tiles are computed in such parts.
use super::{Store, Tile};
use std::arch::x86_64::{_mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps};

/// `H` half vectors of 8 columns from half vector `first`.
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::needless_range_loop, reason = "the index is also a stride's factor")]
unsafe fn tile<const R: usize, const H: usize>(first: usize, store: Store, t: &Tile) {
    let offset = |half: usize, vec: usize| (half / 2) * vec + (half % 2) * 8;
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
        let mut halves = [0; H];
        for h in 0..H {
            halves[h] = offset(first + h, t.b_vec);
        }
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k {
            let mut columns = [_mm256_setzero_ps(); H];
            for h in 0..H {
                columns[h] = _mm256_loadu_ps(b.add(halves[h]));
            }
            for r in 0..R {
                let value = _mm256_set1_ps(*a.add(r * t.a_row));
                for h in 0..H {
                    acc[r][h] = _mm256_fmadd_ps(value, columns[h], acc[r][h]);
                }
            }
            a = a.wrapping_add(t.a_k);
            b = b.wrapping_add(t.b_k);
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
        let r = (rows - row).min(if rows <= 2 { 2 } else { 4 });
        let widest = if r <= 2 { 6 } else { 3 };
        let mut first = 0;
        while first < halves {
            let h = (halves - first).min(widest);
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
            part!(1 x 1  1 x 2  1 x 3  1 x 4  1 x 5  1 x 6  2 x 1  2 x 2  2 x 3  2 x 4  2 x 5  2 x 6
                  3 x 1  3 x 2  3 x 3  4 x 1  4 x 2  4 x 3);
            first += h;
        }
        row += r;
    }
}
