//! Up to 8 x 48 or 6 x 64 in 512-bit registers.
use super::{Store, Tile};
use std::arch::x86_64::{__m512, _mm512_fmadd_ps};

/// The tile of one of the given heights.
macro_rules! heights {
    ($vecs:literal; $($height:literal)*; $rows:expr, $store:expr, $tile:expr) => {
        match $rows {
            $($height => tile::<$height, $vecs, false>($store, $tile, std::ptr::null()),)*
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
        unsafe fn tile<const R: usize, const V: usize, const AHEAD: bool>(store: Store, t: &Tile, ahead: *const f32) {
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
                let (mut a, mut b, mut ahead) = (t.a, t.b, ahead);
                for _ in 0..t.k {
                    if AHEAD {
                        for v in 0..V {
                            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(v * t.b_vec).cast());
                        }
                        ahead = ahead.wrapping_add(t.b_k);
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
                    1 => heights!(1; 1 2 3 4 5 6 7 8; rows, store, t),
                    2 => heights!(2; 1 2 3 4 5 6 7 8; rows, store, t),
                    3 => heights!(3; 1 2 3 4 5 6 7 8; rows, store, t),
                    _ => heights!(4; 1 2 3 4 5 6; rows, store, t),
                }
            }
        }

        /// As [`run`] for 8 x 48, and asks for a further B of the same strides to be brought into the second-level cache
        /// meanwhile.
        ///
        /// # Safety
        /// As [`run`]; nothing is promised of `ahead`, which is not read.
        pub(super) unsafe fn run_ahead(store: Store, t: &Tile, ahead: *const f32) {
            // SAFETY: the caller's promise.
            unsafe { tile::<8, 3, true>(store, t, ahead) }
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
