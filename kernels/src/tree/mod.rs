//! A sum of equally long vectors in one binary tree: neighbours first, then neighbours of sums, an odd last one moving up as it
//! is. The order of additions, and so every rounding, depends on their number alone.
mod cpu;
pub mod cuda;
#[cfg(test)]
mod parity;

pub use cpu::{add, sum};
