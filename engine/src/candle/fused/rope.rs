//! Rotary positions, and the way of keys and values into a store.
use super::indices::Indices;
use super::run::{Compute, Differentiable, run};
use crate::candle::place::{Place, misplaced};
use candle_core::{CpuStorage, Error, InplaceOp3, Layout, Result, Shape, Tensor};
use cohort_kernels::Cpu;
use cohort_kernels::rope::{self, Direction, RopeTable};
use std::sync::Arc;
#[cfg(feature = "cuda")]
use {
    candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut},
    candle_core::{CudaStorage, Storage},
    cohort_kernels::cuda::Gpu,
};

/// Cosines and sines of every position of a model.
pub(super) struct Turns {
    pub(super) table: RopeTable,
    /// The table on the device. `[positions, 2, head_dim / 2]`
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU's twin reads the table itself"))]
    pub(super) values: Tensor,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU's twin knows it from the table"))]
    pub(super) head_dim: usize,
}

impl Turns {
    #[cfg(feature = "cuda")]
    fn on_gpu<R>(&self, job: impl FnOnce((&CudaView<'_, f32>, usize)) -> Result<R>) -> Result<R> {
        let (storage, _) = self.values.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { return Err(misplaced("rope")) };
        job((&storage.as_cuda_slice::<f32>()?.as_view(), self.head_dim))
    }
}

/// `x -> x` turned by the positions.
#[derive(Clone)]
pub(super) struct Rotate {
    pub(super) turns: Arc<Turns>,
    pub(super) positions: Indices<1>,
    pub(super) direction: Direction,
}

impl Compute<1, 1> for Rotate {
    const NAME: &'static str = "rope";

    fn outputs(&self, [x]: [&Shape; 1]) -> [Shape; 1] {
        [x.clone()]
    }

    fn host(&self, cpu: &Cpu, [x]: [&[f32]; 1], [y]: [&mut [f32]; 1]) -> Result<()> {
        y.copy_from_slice(x);
        self.positions.on_host(|[positions]| {
            rope::rotate(cpu, &self.turns.table, positions, self.direction, y);
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, [x]: [CudaView<'_, f32>; 1], [mut y]: [CudaViewMut<'_, f32>; 1]) -> Result<()> {
        self.positions.on_gpu(|[positions]| {
            self.turns.on_gpu(|turns| rope::cuda::rotate(gpu, &x, turns, &positions, self.direction, &mut y).map_err(Error::wrap))
        })
    }
}

impl Differentiable<1, 1> for Rotate {
    fn backward(&self, place: &Place, _: [&Tensor; 1], _: (&Tensor, &[Tensor]), up: &Tensor) -> Result<[Tensor; 1]> {
        run(place, &Self { direction: Direction::Backward, ..self.clone() }, [up])
    }
}

/// Puts keys and values into a store `[2, stored, width]`.
pub(super) struct Append<'a> {
    pub(super) place: &'a Place,
    /// Turns the keys.
    pub(super) turns: Option<&'a Turns>,
    /// Positions of the rows, and where they go.
    pub(super) rows: &'a Indices<2>,
}

impl InplaceOp3 for Append<'_> {
    fn name(&self) -> &'static str {
        "append"
    }

    fn cpu_fwd(
        &self,
        store: &mut CpuStorage,
        layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<()> {
        let (cpu, CpuStorage::F32(store)) = (self.place.host()?, store) else { return Err(misplaced("append")) };
        let (_, stored, width) = layout.shape().dims3()?;
        let (start, _) = contiguous(layout)?;
        let slice = |storage, layout| {
            let (start, end) = contiguous(layout)?;
            Ok::<_, Error>(&CpuStorage::as_slice::<f32>(storage)?[start..end])
        };
        let (mut k, v) = (slice(k, k_layout)?.to_vec(), slice(v, v_layout)?);
        self.rows.on_host(|[positions, to]| {
            if let Some(turns) = self.turns {
                rope::rotate(cpu, &turns.table, positions, Direction::Forward, &mut k);
            }
            for (row, to) in to.iter().map(|to| *to as usize).enumerate().filter(|(_, to)| *to < stored) {
                for (source, base) in [(&k[..], to), (v, stored + to)] {
                    store[start + base * width..][..width].copy_from_slice(&source[row * width..][..width]);
                }
            }
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        store: &mut CudaStorage,
        layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<()> {
        let Place::Gpu(gpu, _) = self.place else { return Err(misplaced("append")) };
        let (start, end) = contiguous(layout)?;
        let mut store = store.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        let view = |storage, layout| {
            let (start, end) = contiguous(layout)?;
            Ok::<_, Error>(CudaStorage::as_cuda_slice::<f32>(storage)?.slice(start..end))
        };
        let (k, v) = (view(k, k_layout)?, view(v, v_layout)?);
        self.rows.on_gpu(|[positions, to]| {
            let mut append = |turns: Option<(&CudaView<'_, f32>, usize)>| {
                rope::cuda::append(gpu, (&k, &v), turns, (&positions, &to), &mut store).map_err(Error::wrap)
            };
            match self.turns {
                Some(turns) => turns.on_gpu(|turns| append(Some(turns))),
                None => append(None),
            }
        })
    }
}

fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| Error::Msg(format!("append: an operand is not contiguous: {layout:?}")))
}
