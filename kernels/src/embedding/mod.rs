//! Rows of a packed `[vocab, hidden]` matrix by token, and the gradient's way back.
mod cpu;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{gather, gather_add, scatter_add};
