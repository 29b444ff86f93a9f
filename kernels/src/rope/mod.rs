//! Rotary positions (2104.09864) in the rotate-half order: pair `(i, i + d/2)` of a head turns by
//! `position * theta^(-2i/d)`.
mod cpu;
pub mod cuda;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{Direction, RopeTable, rotate};
