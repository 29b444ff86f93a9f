//! Choosing tokens: counter-based random numbers, categorical draws, argmax.
//!
//! Invariant **S1**: a draw is a function of its key and the logits; nothing depends on scheduling or on other draws.
mod cpu;
#[cfg(test)]
mod parity;
mod philox;
#[cfg(test)]
mod reference;

pub use cpu::{argmax, categorical};
pub use philox::{Draw, uniform};
