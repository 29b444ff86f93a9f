//! AdamW (1711.05101) on slices, and the sum of squares of a gradient.
mod cpu;
pub mod cuda;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{Step, step, sum_squares};
