//! Whole numbers of a pass on the device: one upload for all of them.
use crate::candle::place::misplaced;
use candle_core::{Device, Result, Storage, Tensor};
use std::ops::Range;

/// Several lists, one after the other.
#[derive(Clone)]
pub(super) struct Indices<const N: usize> {
    all: Tensor,
    ranges: [Range<usize>; N],
}

impl<const N: usize> Indices<N> {
    pub(super) fn new(lists: [&[u32]; N], device: &Device) -> Result<Self> {
        let mut end = 0;
        let ranges = lists.map(|list| {
            end += list.len();
            end - list.len()..end
        });
        Ok(Self { all: Tensor::new(lists.concat(), device)?, ranges })
    }

    /// Some of the lists, in the same memory.
    pub(super) fn pick<const M: usize>(&self, which: [usize; M]) -> Indices<M> {
        Indices { all: self.all.clone(), ranges: which.map(|list| self.ranges[list].clone()) }
    }

    /// Lends the lists to a computation on the CPU.
    pub(super) fn on_host<R>(&self, job: impl FnOnce([&[u32]; N]) -> Result<R>) -> Result<R> {
        let (storage, _) = self.all.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { return Err(misplaced("indices")) };
        let all = storage.as_slice::<u32>()?;
        job(self.ranges.each_ref().map(|range| &all[range.clone()]))
    }

    /// Lends the lists to a launch.
    #[cfg(feature = "cuda")]
    pub(super) fn on_gpu<R>(
        &self,
        job: impl FnOnce([candle_core::cuda_backend::cudarc::driver::CudaView<'_, u32>; N]) -> Result<R>,
    ) -> Result<R> {
        let (storage, _) = self.all.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { return Err(misplaced("indices")) };
        let all = storage.as_cuda_slice::<u32>()?;
        job(self.ranges.each_ref().map(|range| all.slice(range.clone())))
    }
}
