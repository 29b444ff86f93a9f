//! Root-mean-square norm (1910.07467): `y = x * rstd * w`, `rstd = 1 / sqrt(mean(x^2) + eps)`.
mod cpu;
pub mod cuda;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{Backward, backward, forward};
