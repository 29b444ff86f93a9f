//! Causal grouped-query attention over paged keys and values.
//!
//! Invariants
//! - **A1** one query row's result depends on its own query and on keys and values `0..=position` only: decoding a
//!   token, any chunk of a prompt and the training forward give the same bits. A score is one chain over the head's
//!   width; `e^(score - max)` is summed in 16 lanes by absolute position; each output is one chain over positions
//!   ascending, times the reciprocal of the sum.
//! - **A2** rows that share a tile may run past their own position: those terms are `0 * v`, which changes nothing but
//!   the sign of a zero, and a zero result is always written as +0. (Values must be finite, as any model's are.)
//! - **A3** the backward pass is deterministic: one task per (family of sequences, key/value head), queries in order.
//!
//! A page holds [`PAGE`] positions of one layer: per key/value head the keys as `[4][head_dim][16]` (16 positions side
//! by side, so that scores are the same microkernel as a linear), then the values as `[64][stride]`, the stride being
//! the head's width rounded up to 16.
#![expect(unsafe_code, reason = "hands operands to the microkernel and interleaved heads to tasks")]
mod backward;
pub mod cuda;
#[cfg(test)]
mod cuda_parity;
mod forward;
mod pages;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use backward::{BackwardSpan, backward};
pub use forward::{Span, forward};
pub use pages::{Append, append};

/// Positions of a page.
pub const PAGE: usize = 64;

/// Shape of the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key/value heads; divides `query`.
    pub key_value: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Heads {
    /// Values that a page of one layer takes.
    #[must_use]
    pub fn page_len(&self) -> usize {
        self.key_value * self.head_len()
    }

    /// Pages for so many positions.
    #[must_use]
    pub fn pages(positions: usize) -> usize {
        positions.div_ceil(PAGE)
    }

    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.query / self.key_value
    }

    /// Width of a row of values: whole vectors.
    fn stride(&self) -> usize {
        self.dim.next_multiple_of(16)
    }

    /// Values of one head in a page.
    fn head_len(&self) -> usize {
        PAGE * (self.dim + self.stride())
    }

    /// Keys and values of a head in a page.
    fn head<'a>(&self, page: &'a [f32], head: usize) -> (&'a [f32], &'a [f32]) {
        page[head * self.head_len()..][..self.head_len()].split_at(PAGE * self.dim)
    }

    /// ln-domain scale of the scores: `1 / sqrt(dim)`.
    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}
