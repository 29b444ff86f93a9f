//! Choosing tokens: counter-based random numbers, categorical draws, argmax, and what the draw may choose from: penalties,
//! then (at a temperature) top-k, top-p, min-p.
//!
//! Invariant **S1**: a draw is a function of its key and the logits; nothing depends on scheduling or on other draws.
mod cpu;
mod min_p;
#[cfg(test)]
mod parity;
mod penalties;
mod philox;
#[cfg(test)]
mod reference;
mod top_k;
mod top_p;
mod truncation;

pub use cpu::{argmax, categorical};
pub use min_p::min_p;
pub use penalties::Penalties;
pub(crate) use philox::philox;
pub use philox::{Draw, key, uniform};
pub use top_k::top_k;
pub use top_p::top_p;
pub use truncation::Truncation;
