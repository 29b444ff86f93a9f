//! The compute kernels of the native engine: one folder per operation.
//!
//! Invariants of every kernel
//! - **K1** one row's value never depends on the other rows, the batch, or prefill versus decode.
//! - **K2** equal bits for any number of threads ([`pool`], T1) and on every instruction [`path`] (P1).
//! - **K3** one accumulation chain per matrix element in ascending `k` ([`tile`](crate), C1); other sums run in 16
//!   lanes by position and end in one fixed tree ([`lanes`](crate)).
//! - **K4** no libm and no approximate instructions: `exp`, `ln`, `sin`, `cos` are polynomials of [`math`].
//!
//! Matrices of weights are packed ([`linear`]); activations are row-major `[rows, width]` without padding.

pub mod adamw;
pub mod attention;
pub mod bf16;
pub mod bias;
pub mod buffer;
pub mod cuda;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod head;
pub mod int8;
mod lanes;
pub mod layernorm;
pub mod linear;
pub mod logprob;
pub mod lora;
pub mod math;
pub mod path;
pub mod pool;
pub mod rmsnorm;
pub mod rope;
pub mod sampling;
mod scratch;
pub mod swiglu;
#[cfg(test)]
mod testing;
mod tile;
pub mod tree;

pub use buffer::Buffer;
pub use path::Path;
pub use pool::Pool;
pub use tile::{Format, ceiling};

/// Threads and instructions that kernels run on.
pub struct Cpu {
    path: Path,
    pool: Pool,
}

impl Cpu {
    /// The best path of this machine and `threads` threads (0: all cores), the helpers niced by `nice`.
    #[must_use]
    pub fn new(threads: usize, nice: i32) -> Self {
        Self::with_path(Path::detect(), threads, nice)
    }

    /// As [`Cpu::new`] with a given path.
    #[must_use]
    pub fn with_path(path: Path, threads: usize, nice: i32) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores() } else { threads };
        Self { path, pool: Pool::new(threads, nice) }
    }

    /// Instructions in use.
    #[must_use]
    pub fn path(&self) -> Path {
        self.path
    }

    /// Threads in use.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
