//! Up to 8 x 48 or 6 x 64 in 512-bit registers.
use super::{Ahead, LINE, Store, Tile};
use std::arch::x86_64::{__m512, _mm512_fmadd_ps};

/// The tile of one of the given heights.
macro_rules! heights {
    ($vecs:literal, $lines:literal; $($height:literal)*; $rows:expr, $store:expr, $tile:expr, $ahead:expr) => {
        match $rows {
            $($height => tile::<$height, $vecs, $lines>($store, $tile, $ahead),)*
            _ => debug_assert!(false, "{} rows", $rows),
        }
    };
}
pub(super) use heights;

/// Defines `run` and `run_ahead` over 512-bit registers for the given instructions and their multiply-add of 16 columns.
macro_rules! wide_tiles {
    ($features:literal, $multiply:ident) => {
        use std::arch::x86_64::{
            _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
        };

        #[target_feature(enable = $features)]
        unsafe fn tile<const R: usize, const V: usize, const LINES: usize>(store: Store, t: &Tile, ahead: Ahead) {
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
                let (mut a, mut b, mut next) = (t.a, t.b, ahead.start);
                for _ in 0..t.k {
                    for line in 0..LINES {
                        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line * LINE).cast());
                    }
                    if LINES > 0 {
                        next = next.wrapping_add(ahead.step);
                    }
                    let mut columns = [_mm512_setzero_ps(); V];
                    for v in 0..V {
                        columns[v] = _mm512_loadu_ps(b.add(v * t.b_vec));
                    }
                    for r in 0..R {
                        let value = _mm512_set1_ps(*a.add(r * t.a_row));
                        for v in 0..V {
                            acc[r][v] = $multiply(value, columns[v], acc[r][v]);
                        }
                    }
                    a = a.wrapping_add(t.a_k);
                    b = b.wrapping_add(t.b_k);
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
        /// As there, and the machine has the instructions of this file.
        pub(super) unsafe fn run(rows: usize, vecs: usize, store: Store, t: &Tile) {
            // SAFETY: the caller's promise.
            unsafe {
                match vecs {
                    1 => heights!(1, 0; 1 2 3 4 5 6 7 8; rows, store, t, Ahead::NOTHING),
                    2 => heights!(2, 0; 1 2 3 4 5 6 7 8; rows, store, t, Ahead::NOTHING),
                    3 => heights!(3, 0; 1 2 3 4 5 6 7 8; rows, store, t, Ahead::NOTHING),
                    _ => heights!(4, 0; 1 2 3 4 5 6; rows, store, t, Ahead::NOTHING),
                }
            }
        }

        /// As [`run`] with three vectors, and asks for other words to be brought into the second-level cache meanwhile.
        ///
        /// # Safety
        /// As [`run`].
        pub(super) unsafe fn run_ahead(rows: usize, store: Store, t: &Tile, ahead: Ahead) {
            // SAFETY: the caller's promise; what is asked for is not read.
            unsafe {
                match ahead.step.div_ceil(LINE) {
                    0 => heights!(3, 0; 1 2 3 4 5 6 7 8; rows, store, t, ahead),
                    1 => heights!(3, 1; 1 2 3 4 5 6 7 8; rows, store, t, ahead),
                    2 => heights!(3, 2; 1 2 3 4 5 6 7 8; rows, store, t, ahead),
                    _ => heights!(3, 3; 1 2 3 4 5 6 7 8; rows, store, t, ahead),
                }
            }
        }
    };
}
pub(super) use wide_tiles;

#[inline]
#[target_feature(enable = "avx512f")]
fn multiply(a: __m512, b: __m512, acc: __m512) -> __m512 {
    _mm512_fmadd_ps(a, b, acc)
}

wide_tiles!("avx512f", multiply);
