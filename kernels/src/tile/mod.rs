//! The one matrix microkernel under linears and attention: `C[r, 16 v + i] = chain over k of A[r, k] * B[k, 16 v + i]`.
//!
//! Invariant **C1**: every element of C is one accumulation chain, `acc = fma(a[k], b[k], acc)` for ascending `k` from
//! +0 (or from the C that was there), whatever the tile's size, the instructions, or how the chain is cut into calls:
//! storing an `f32` and loading it again changes nothing.
//!
//! Operands are words of 32 bits: an `f32`, or a pair of bf16 that follow each other along `k`, the earlier one in the low half,
//! or four int8 of a group ([`int8`](crate::int8)).
//!
//! Invariant **C2**: with pairs a step of the chain is `acc = fma(a.high, b.high, acc)`, then `acc = fma(a.low, b.low, acc)`,
//! each rounded to the nearest `f32`, ties to even, with a zero of the same sign for a result (or a first acc) below the
//! smallest normal number. That is what x86's VDPBF16PS does; other paths compute it with their own multiply-adds.
//!
//! Invariant **C3**: with int8 a step of the chain is a group: `acc = fma(s * a.scale, b.scale, acc)`, `s` being the group's exact
//! integer sum of products and `s * a.scale` rounded to an `f32`.
#![expect(unsafe_code, reason = "strided loads and stores through raw pointers; bounds are the callers' promise")]
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_int8;
#[cfg(target_arch = "x86_64")]
mod avx2_pairs;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
mod ceiling;
mod pairs;
#[cfg(test)]
mod parity;
mod portable;
mod quads;
#[cfg(test)]
mod reference;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx512_bf16::agree as pairs_agree;
pub use ceiling::ceiling;

use crate::int8::{self, GROUP, WEIGHT_BLOCK};
use crate::path::{Path, Set};

/// Most rows of a tile.
pub(crate) const MAX_ROWS: usize = 8;
/// Words of a line of the caches.
const LINE: usize = 16;
/// Words of a row of the widest B whose tiles ask for more.
const B_ROW: usize = 3 * LINE;

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

/// What a word of an operand holds; sums are `f32` always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Format {
    /// One `f32`.
    #[default]
    F32,
    /// Two bf16, see [`bf16`](crate::bf16).
    Bf16,
    /// Four int8, and after those of a group their scale: for forward products only, see [`int8`](crate::int8).
    Int8,
}

impl Format {
    /// Words that `values` values of a weight along `k` take; what is missing in the last one, or in the last group, are zeros.
    #[must_use]
    #[inline(always)]
    pub fn words(self, values: usize) -> usize {
        match self {
            Self::F32 => values,
            Self::Bf16 => values.div_ceil(2),
            Self::Int8 => values.div_ceil(GROUP) * WEIGHT_BLOCK,
        }
    }

    /// Words that a row of `values` activations takes.
    #[must_use]
    #[inline(always)]
    pub fn row_words(self, values: usize) -> usize {
        match self {
            Self::F32 | Self::Bf16 => self.words(values),
            Self::Int8 => int8::row_words(values),
        }
    }
}

/// Operands of one tile. Strides count words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile {
    /// Length of the chains, in words of B.
    pub(crate) k: usize,
    /// `A[r, k]` lies at `a + r * a_row + k * a_k`; with int8 a row is one piece, whatever `a_k` says.
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
pub(crate) unsafe fn run(path: Path, format: Format, rows: usize, vecs: usize, store: Store, tile: &Tile) {
    debug_assert!((1..=MAX_ROWS).contains(&rows) && (1..=4).contains(&vecs));
    if rows > 6 && vecs > 3 {
        // SAFETY: both halves are parts of the caller's tile.
        unsafe {
            let half = Tile { b: tile.b.add(2 * tile.b_vec), c: tile.c.add(2 * tile.c_vec), ..*tile };
            run(path, format, rows, 2, store, tile);
            run(path, format, rows, vecs - 2, store, &half);
        }
        return;
    }
    // SAFETY: the caller's promise; the machine has the path's instructions (P2).
    unsafe {
        match (format, path.set()) {
            #[cfg(target_arch = "x86_64")]
            (Format::Bf16, Set::Avx512Bf16) => avx512_bf16::run(rows, vecs, store, tile),
            #[cfg(target_arch = "x86_64")]
            (Format::Bf16, Set::Avx512 | Set::Avx512Vnni | Set::Avx2) => {
                avx2_pairs::run_ahead(rows, vecs, store, tile, Ahead::NOTHING)
            }
            (Format::Bf16, _) => pairs::portable::<16>(rows, vecs, store, tile),
            #[cfg(target_arch = "x86_64")]
            (Format::Int8, Set::Avx512Bf16 | Set::Avx512Vnni) => avx512_vnni::run(rows, vecs, store, tile),
            #[cfg(target_arch = "x86_64")]
            (Format::Int8, Set::Avx512 | Set::Avx2) => avx2_int8::run(rows, vecs, store, tile),
            (Format::Int8, _) => quads::run(rows, vecs, store, tile),
            #[cfg(target_arch = "x86_64")]
            (Format::F32, Set::Avx512 | Set::Avx512Vnni | Set::Avx512Bf16) => avx512::run(rows, vecs, store, tile),
            #[cfg(target_arch = "x86_64")]
            (Format::F32, Set::Avx2) => avx2::run_ahead(rows, vecs, store, tile, Ahead::NOTHING),
            (Format::F32, _) => portable::run(rows, vecs, store, tile),
        }
    }
}

/// Words that a later call will read, of which a tile asks for some at each step of its chains: memory works while the
/// tile computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    /// The first one; nothing is read of it.
    start: *const f32,
    /// Words a step, at most a line of B; 0: nothing is asked for.
    step: usize,
}

impl Ahead {
    /// Nothing.
    pub(crate) const NOTHING: Self = Self { start: std::ptr::null(), step: 0 };

    /// The part of `words` that is asked for by tile `index` of those that `rows` rows make, with chains of `k` steps. A single
    /// row computes too little to wait for anything but memory, which brings its own B as fast as it can: it asks for nothing.
    pub(crate) fn part(words: &[u32], index: usize, rows: usize, k: usize) -> Self {
        // More parts would leave less than a line of the cache a step: asked for twice.
        let parts = rows.div_ceil(MAX_ROWS).clamp(1, B_ROW / LINE);
        let step = words.len().div_ceil(k.max(1) * parts).min(B_ROW);
        let first = index * k * step;
        if rows < 2 || index >= parts || first >= words.len() {
            Self::NOTHING
        } else {
            Self { start: words[first..].as_ptr().cast(), step }
        }
    }

    /// What is left of it after so many steps.
    pub(crate) fn after(self, steps: usize) -> Self {
        Self { start: self.start.wrapping_add(steps * self.step), ..self }
    }

    /// What part `index` of the `parts` in which a tile is computed asks for of it, in whole lines a step.
    fn share(self, index: usize, parts: usize, k: usize) -> Self {
        let step = self.step.div_ceil(parts).next_multiple_of(LINE);
        if index * step < self.step { Self { start: self.start.wrapping_add(index * k * step), step } } else { Self::NOTHING }
    }
}

/// As [`run`], and asks, where that can be done, for words to be brought nearer.
///
/// # Safety
/// As [`run`].
pub(crate) unsafe fn run_ahead(path: Path, format: Format, rows: usize, vecs: usize, store: Store, tile: &Tile, ahead: Ahead) {
    // SAFETY: the caller's promise; the machine has the path's instructions (P2).
    unsafe {
        match (format, path.set()) {
            #[cfg(target_arch = "x86_64")]
            (Format::F32, Set::Avx512 | Set::Avx512Vnni | Set::Avx512Bf16) if vecs == 3 => {
                avx512::run_ahead(rows, store, tile, ahead);
            }
            #[cfg(target_arch = "x86_64")]
            (Format::Bf16, Set::Avx512Bf16) if vecs == 3 => avx512_bf16::run_ahead(rows, store, tile, ahead),
            #[cfg(target_arch = "x86_64")]
            (Format::F32, Set::Avx2) => avx2::run_ahead(rows, vecs, store, tile, ahead),
            #[cfg(target_arch = "x86_64")]
            (Format::Bf16, Set::Avx512 | Set::Avx512Vnni | Set::Avx2) => avx2_pairs::run_ahead(rows, vecs, store, tile, ahead),
            _ => run(path, format, rows, vecs, store, tile),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of the words that the tiles of so many rows ask for, each computed in so many parts and so many steps at a time.
    fn asked(words: &[u32], rows: usize, parts: usize, block: usize) -> Vec<usize> {
        let k = words.len() / B_ROW;
        let mut lines = Vec::new();
        for done in (0..k).step_by(block) {
            let steps = block.min(k - done);
            for tile in 0..rows.div_ceil(MAX_ROWS) {
                let ahead = Ahead::part(words, tile, rows, k).after(done);
                for share in (0..parts).map(|index| ahead.share(index, parts, steps)).filter(|share| share.step > 0) {
                    let first = (share.start.addr() - words.as_ptr().addr()) / size_of::<u32>();
                    lines.extend((first..first + steps * share.step).step_by(LINE).map(|word| word / LINE));
                }
            }
        }
        lines
    }

    #[test]
    fn tiles_in_parts_ask_for_every_line_of_the_next_panel() {
        let words = vec![0u32; 192 * B_ROW];
        let all = words.len() / LINE;
        for (rows, parts, block) in [2, 3, 8, 9, 16, 24, 32, 100]
            .into_iter()
            .flat_map(|rows| [1, 2, 3, 4, 6].into_iter().flat_map(move |parts| [64, 128, 192].map(|block| (rows, parts, block))))
        {
            let mut lines = asked(&words, rows, parts, block);
            assert!(lines.len() <= 2 * all, "{rows} rows in {parts} parts: {} lines of {all}", lines.len());
            lines.sort_unstable();
            lines.dedup();
            lines.retain(|line| *line < all);
            assert_eq!(lines.len(), all, "{rows} rows in {parts} parts, {block} steps at a time");
        }
        assert!(asked(&words, 1, 1, 192).is_empty(), "a single row waits for nothing but its own panel");
    }
}
