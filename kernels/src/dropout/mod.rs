//! Dropout (1207.0580) as a change of its input: `x~ - x`, where `x~[k]` is 0 with probability p and `x[k] / (1 - p)` else.
//!
//! Whether an element is dropped is one 32-bit word of Philox4x32-10 under (key of its sequence; column, layer, module,
//! position): the same in any batch, on any machine, forward and backward.
mod cpu;
#[cfg(test)]
mod parity;

pub use cpu::{Drops, add_gradient, change};
