//! Launching the kernels of `*/cuda.cu`: one folder an operation, the same launching code on every device.
//!
//! An operation's `cuda.rs` checks lengths, chooses a grid and names the operands; a [`Device`] runs them: in the `cuda`
//! build a stream of a GPU (`Gpu`), in tests the host, which compiles the same sources and runs a thread of a block as a
//! fiber (`host/fibers.cpp`).
//!
//! Invariants of every kernel
//! - **G1** equal calls give equal bits: each output value has one owner, which adds in a fixed order; no atomics.
//! - **G2** no value read from memory (a token, a position, a page) makes a kernel leave its operands: what lies outside
//!   gives NaN or is left out. Lengths are checked before a launch.
//! - **G3** at most 48 KiB of shared memory, so that every GPU of compute capability 7.5 and later runs them.
#[cfg(test)]
pub(crate) mod devices;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(test)]
pub(crate) mod host;
#[cfg(feature = "cuda")]
pub mod nccl;

#[cfg(feature = "cuda")]
pub use gpu::{Gpu, GpuError};

/// Threads of a warp.
pub(crate) const WARP: usize = 32;
/// Most threads of a block where an operation does not say otherwise.
pub(crate) const THREADS: usize = 256;

/// A kernel of an operation. Only this crate can name one, so that only its checked calls can launch one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The operation's folder.
    pub(crate) folder: &'static str,
    /// The function.
    pub(crate) name: &'static str,
}

/// How many blocks of how many threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in x, y, z.
    pub blocks: [u32; 3],
    /// Threads of a block: whole warps, at most 1024.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Grid {
    /// One thread for each of `count` values.
    ///
    /// # Panics
    /// When there are more than a grid holds.
    #[must_use]
    pub fn values(count: usize) -> Self {
        Self { blocks: [small(count.div_ceil(THREADS)), 1, 1], threads: THREADS as u32, shared_bytes: 0 }
    }

    /// One block for each of `rows` rows of `width` values, with `shared` values of shared memory for each warp.
    ///
    /// # Panics
    /// When there are more than a grid holds.
    #[must_use]
    pub fn rows(rows: usize, width: usize, shared: usize) -> Self {
        let threads = width.next_multiple_of(WARP).clamp(WARP, THREADS);
        Self { blocks: [small(rows), 1, 1], threads: threads as u32, shared_bytes: (threads / WARP * shared * 4) as u32 }
    }
}

/// A count as kernels take it.
///
/// # Panics
/// Past 2^31: no grid and no index of the kernels goes there.
pub(crate) fn small(count: usize) -> u32 {
    assert!(count < 1 << 31, "{count} is more than one launch takes");
    count as u32
}

/// What a kernel takes, in the order of its parameters.
pub enum Operand<'a, D: Device + ?Sized> {
    /// Numbers to read.
    In(D::View<'a, f32>),
    /// Indices to read.
    Indices(D::View<'a, u32>),
    /// Numbers to write, or to change in place.
    Out(D::ViewMut<'a, f32>),
    /// A length or count.
    Count(u32),
    /// A factor.
    Factor(f32),
}

/// What runs kernels.
pub trait Device {
    /// Values of the device, to read.
    type View<'a, T: 'a>;
    /// Values of the device, to change.
    type ViewMut<'a, T: 'a>;
    /// Why a launch failed.
    type Error;

    /// Values of a view.
    fn len<T>(view: &Self::View<'_, T>) -> usize;
    /// Values of a view.
    fn len_mut<T>(view: &Self::ViewMut<'_, T>) -> usize;
    /// The same values, for a shorter time.
    fn again<'b, T>(view: &'b Self::View<'_, T>) -> Self::View<'b, T>;
    /// The same values, for a shorter time.
    fn again_mut<'b, T>(view: &'b mut Self::ViewMut<'_, T>) -> Self::ViewMut<'b, T>;
    /// The same values, only to read.
    fn read<'b, T>(view: &'b Self::ViewMut<'_, T>) -> Self::View<'b, T>;

    /// Queues a kernel behind those launched before it. An empty grid does nothing.
    ///
    /// Only the operations' `cuda.rs` can call it ([`Kernel`]): they vouch that the operands are those of the kernel's
    /// parameters and hold every value that its grid touches.
    ///
    /// # Errors
    /// When the device refuses the launch, or reports that an earlier one failed.
    fn launch(&self, kernel: Kernel, grid: Grid, operands: Vec<Operand<'_, Self>>) -> Result<(), Self::Error>;
}
