//! log-softmax over a vocabulary, the same for the sampler (a row of logits) and the learner (chunk by chunk, never
//! stored): equal logits give equal bits.
//!
//! Invariant **L1**: a row is cut into chunks of [`CHUNK`] tokens. A chunk gives its largest `z`, the sum of
//! `e^(z - max)` and of `e^(z - max) (z - max)` in 16 lanes; chunks are combined in order, in f64. `z = logit / T`.
mod cpu;
pub mod cuda;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{ChunkStats, RowStats, chunk, combine, row};

/// Tokens of a chunk: 32 panels of a packed matrix.
pub const CHUNK: usize = 32 * crate::linear::PANEL;
