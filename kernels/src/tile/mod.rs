//! The one matrix microkernel under linears and attention: `C[r, 16 v + i] = chain over k of A[r, k] * B[k, 16 v + i]`.
//!
//! Invariant **C1**: every element of C is one accumulation chain, `acc = fma(a[k], b[k], acc)` for ascending `k` from
//! +0 (or from the C that was there), whatever the tile's size, the instructions, or how the chain is cut into calls:
//! storing an `f32` and loading it again changes nothing.
#![expect(unsafe_code, reason = "strided loads and stores through raw pointers; bounds are the callers' promise")]
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod ceiling;
#[cfg(test)]
mod parity;
mod portable;
#[cfg(test)]
mod reference;

pub use ceiling::ceiling;

use crate::path::{Path, Set};

/// Most rows of a tile.
pub(crate) const MAX_ROWS: usize = 8;

/// What happens to the C that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// `C = chain from +0`.
    Set,
    /// `C = chain from C`: continues an earlier chain.
    Chain,
    /// `C = C + (chain from +0)`.
    Add,
}

/// Operands of one tile. Strides count `f32`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Length of the chains.
    pub(crate) k: usize,
    /// `A[r, k]` lies at `a + r * a_row + k * a_k`.
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_k: usize,
    /// `B[k, 16 v + i]` lies at `b + k * b_k + v * b_vec + i`.
    pub(crate) b: *const f32,
    pub(crate) b_k: usize,
    pub(crate) b_vec: usize,
    /// `C[r, 16 v + i]` lies at `c + r * c_row + v * c_vec + i`.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    pub(crate) c_vec: usize,
}

/// Computes a tile of `rows` (1 to 8) by `vecs` (1 to 4) vectors of 16 columns. With 7 or 8 rows at most 3 vectors are
/// held in registers; 4 are computed as 2 and 2.
///
/// # Safety
/// All elements that the strides reach are valid for reads (C also for writes, by this thread alone).
pub(crate) unsafe fn run(path: Path, rows: usize, vecs: usize, store: Store, tile: &Tile) {
    debug_assert!((1..=MAX_ROWS).contains(&rows) && (1..=4).contains(&vecs));
    if rows > 6 && vecs > 3 {
        // SAFETY: both halves are parts of the caller's tile.
        unsafe {
            let half = Tile { b: tile.b.add(2 * tile.b_vec), c: tile.c.add(2 * tile.c_vec), ..*tile };
            run(path, rows, 2, store, tile);
            run(path, rows, vecs - 2, store, &half);
        }
        return;
    }
    // SAFETY: the caller's promise; the machine has the path's instructions (P2).
    unsafe {
        match path.set() {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => avx512::run(rows, vecs, store, tile),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => avx2::run(rows, vecs, store, tile),
            _ => portable::run(rows, vecs, store, tile),
        }
    }
}

/// As [`run`], and asks, where that can be done, for the B of a later call with the same strides to be brought nearer.
///
/// # Safety
/// As [`run`]; nothing is promised of `ahead`, which is not read.
pub(crate) unsafe fn run_ahead(path: Path, rows: usize, vecs: usize, store: Store, tile: &Tile, ahead: *const f32) {
    // SAFETY: the caller's promise; the machine has the path's instructions (P2).
    unsafe {
        match path.set() {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 if rows == MAX_ROWS && vecs == 3 && !ahead.is_null() => avx512::run_ahead(store, tile, ahead),
            _ => run(path, rows, vecs, store, tile),
        }
    }
}
