//! Layer norm (1607.06450): `y = (x - mean) rstd w + b`, `rstd = 1 / sqrt(mean((x - mean)^2) + eps)`.
mod cpu;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use crate::rmsnorm::Backward;
pub use cpu::{Affine, backward, forward};
