//! A network between the devices of several engines, on which sums over them travel. [`Fabric`] is the seam; `nccl` is it
//! between GPUs.
//!
//! Invariants
//! - **B1** a call on it ends: it looks up ([`Keep`]) at least every 10 ms, and ends when it is told so.
//! - **B2** after an error it is of no more use; another one is made, in the same process.
//! - **B3** a sum has the bits of the tree ([`cohort_kernels::tree`]), whatever carried it.
#[cfg(feature = "cuda")]
mod nccl;

use cohort_model::config::DeviceKind;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use thiserror::Error;

/// What a call does between its waits, told whether anything has moved since the last time.
pub type Keep<'a> = dyn FnMut(bool) -> ControlFlow<()> + 'a;

/// One rank's end of a fabric.
pub trait Fabric: Send + fmt::Debug {
    /// Replaces `data`, equally long on every rank, by the sum of all ranks' in the tree. The first call connects the ranks,
    /// and waits until all of them have made it.
    ///
    /// # Errors
    /// [`FabricError`]; `data` then holds anything.
    fn all_reduce(&mut self, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError>;
}

/// Makes fabrics of one kind.
pub trait Fabrics: Send + Sync + fmt::Debug {
    /// Its name, by which another process knows whether it has the same.
    fn kind(&self) -> &'static str;
    /// By what the ranks of a new group find each other.
    ///
    /// # Errors
    /// Why there can be none.
    fn invite(&self) -> Result<Vec<u8>, String>;
    /// Takes a place in the group of an invitation, without waiting for the others.
    ///
    /// # Errors
    /// Why this rank cannot.
    fn join(&self, invitation: &[u8], rank: usize, world: usize) -> Result<Box<dyn Fabric>, String>;
}

/// Why a call on a fabric ended without its result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FabricError {
    /// It was told to.
    #[error("it was told to end")]
    Ended,
    /// It failed.
    #[error("{0}")]
    Broken(String),
}

/// What engines on this kind of device have between them.
#[must_use]
pub fn between(device: DeviceKind) -> Option<Arc<dyn Fabrics>> {
    match device {
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => Some(Arc::new(nccl::Nccl)),
        _ => None,
    }
}
