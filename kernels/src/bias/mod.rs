//! The bias of a projection: `y += b` in every row; its gradient is `db += sum of dy over rows`, one chain, rows ascending.
mod cpu;
#[cfg(test)]
mod parity;
#[cfg(test)]
mod reference;

pub use cpu::{backward, forward};
