//! `y = x W^T`, its two gradients, and the packed layout of W.
//!
//! A matrix `W [out, in]` is kept in panels of [`PANEL`] rows: element `(n, k)` lies at
//! `(n / 48) * 48 * in + k * 48 + n % 48`. The rows that fill the last panel are zero and stay zero. Gradients and
//! moments have the same layout. A range of whole panels is itself a packed matrix.
//!
//! Each element is one chain: `y[m, n]` over `k`, `dx[m, k]` over `n`, `dW[n, k]` over `m`, all ascending (C1).
//!
//! With a [`Matrix`] of bf16 both factors of each product are rounded to bf16 and go in pairs along the chain (C2); results,
//! gradients included, are f32. With one of int8 both factors are integers of a group with a scale, and groups go along the chain
//! (C3); there are no gradients of it.
#![expect(unsafe_code, reason = "hands operands to the microkernel, whose bounds are checked here")]
mod cpu;
mod matrix;
mod pack;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;
mod rows;

pub use cpu::{Projection, backward_input, backward_weight, forward};
pub use matrix::Matrix;
pub use pack::{RowPacked, halve, pack, packed_index, packed_len, quantize, unpack, unpack_rows};

/// Rows of W (columns of y) in a panel.
pub const PANEL: usize = 48;

/// What happens to the output that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// It is replaced.
    Set,
    /// Its chains go on: as if this call's terms followed those of the call that wrote it.
    Continue,
    /// The product is added to it (the residual stream).
    Add,
}
