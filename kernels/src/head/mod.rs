//! The output projection fused with log-softmax and gather: log-prob and entropy of given tokens, and their gradients.
//! Logits live for one chunk of the vocabulary only; the backward pass computes them again.
//!
//! Invariant **H1**: the log-prob equals, bit for bit, [`logprob::row`](crate::logprob::row) of the logits that
//! [`linear::forward`](crate::linear::forward) gives.
mod cpu;
#[cfg(test)]
mod parity;
#[cfg(test)]
pub(crate) mod reference;

pub use cpu::{Head, Target, Upstream, backward, forward, gradient};
