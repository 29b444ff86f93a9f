//! SwiGLU (2002.05202): `h = silu(gate) * up`, `silu(g) = g / (1 + e^-g)`.
mod cpu;
pub mod cuda;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{backward, forward};
