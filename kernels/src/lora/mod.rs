//! A low-rank adapter put into its matrix (2106.09685): `W' = W + s B A`, `A [r, in]`, `B [out, r]`.
//!
//! One fixed order for every element: `sum` is the chain `fma(B[n, j], A[j, k], sum)` for ascending `j` from +0, and
//! `W'[n, k] = fma(s, sum, W[n, k])`. Whoever computes with an adapter computes with this `W'`, so that a merged model and
//! an adapter beside its frozen one give equal bits.
mod cpu;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{Product, merge};
