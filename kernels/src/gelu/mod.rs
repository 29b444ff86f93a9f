//! GELU by its tanh form (1606.08415), GPT-2's `gelu_new`: `h = x (1 + tanh u) / 2`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
//!
//! Computed as `x / (1 + e^(-2 u))`, which is the same and loses nothing where tanh is near -1.
mod cpu;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{backward, forward};
