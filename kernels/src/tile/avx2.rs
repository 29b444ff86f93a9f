//! Up to 2 x 48 or 4 x 24 in 256-bit registers; larger tiles are computed in such parts.
use super::{Ahead, LINE, Store, Tile};
use std::arch::x86_64::{
    _MM_HINT_T1, _mm_prefetch, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_storeu_ps,
};

/// `H` half vectors of 8 columns from half vector `first`; asks for `LINES` lines a step.
#[target_feature(enable = "avx2,fma")]
#[expect(clippy::needless_range_loop, reason = "the index is also a stride's factor")]
unsafe fn tile<const R: usize, const H: usize, const LINES: usize>(first: usize, store: Store, t: &Tile, ahead: Ahead) {
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

/// See [`super::run_ahead`].
///
/// # Safety
/// As there, and the machine has AVX2 and FMA.
pub(super) unsafe fn run_ahead(rows: usize, vecs: usize, store: Store, t: &Tile, ahead: Ahead) {
    let halves = 2 * vecs;
    let parts = if rows <= 2 { 1 } else { rows.div_ceil(4) * halves.div_ceil(3) };
    let (mut row, mut index) = (0, 0);
    while row < rows {
        let r = (rows - row).min(if rows <= 2 { 2 } else { 4 });
        let widest = if r <= 2 { 6 } else { 3 };
        let mut first = 0;
        while first < halves {
            let h = (halves - first).min(widest);
            let ahead = ahead.share(index, parts, t.k);
            macro_rules! part {
                ($($r:literal x $h:literal)*) => {
                    match (r, h) {
                        // SAFETY: a part of the caller's tile.
                        $(($r, $h) => unsafe {
                            let part = Tile { a: t.a.add(row * t.a_row), c: t.c.add(row * t.c_row), ..*t };
                            match ahead.step / LINE {
                                0 => tile::<$r, $h, 0>(first, store, &part, ahead),
                                1 => tile::<$r, $h, 1>(first, store, &part, ahead),
                                2 => tile::<$r, $h, 2>(first, store, &part, ahead),
                                _ => tile::<$r, $h, 3>(first, store, &part, ahead),
                            }
                        },)*
                        _ => debug_assert!(false, "{r} x {h}"),
                    }
                };
            }
            part!(1 x 1  1 x 2  1 x 3  1 x 4  1 x 5  1 x 6  2 x 1  2 x 2  2 x 3  2 x 4  2 x 5  2 x 6
                  3 x 1  3 x 2  3 x 3  4 x 1  4 x 2  4 x 3);
            first += h;
            index += 1;
        }
        row += r;
    }
}
