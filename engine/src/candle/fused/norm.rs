//! The root-mean-square norm, alone and with what is added to the residual stream before it.
use super::run::{Compute, Differentiable, run};
use crate::candle::place::Place;
use candle_core::{Result, Shape, Tensor};
use cohort_kernels::{Cpu, rmsnorm};
#[cfg(feature = "cuda")]
use {
    candle_core::Error,
    candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut},
    cohort_kernels::cuda::Gpu,
};

/// `x, weight -> y`.
pub(super) struct Norm {
    pub(super) eps: f32,
}

impl Compute<2, 1> for Norm {
    const NAME: &'static str = "rmsnorm";

    fn outputs(&self, [x, _]: [&Shape; 2]) -> [Shape; 1] {
        [x.clone()]
    }

    fn host(&self, cpu: &Cpu, [x, weight]: [&[f32]; 2], [y]: [&mut [f32]; 1]) -> Result<()> {
        rmsnorm::forward(cpu, x, weight, self.eps, y, &mut vec![0.0; x.len() / weight.len()]);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, [x, weight]: [CudaView<'_, f32>; 2], [mut y]: [CudaViewMut<'_, f32>; 1]) -> Result<()> {
        rmsnorm::cuda::forward(gpu, &x, &weight, self.eps, &mut y).map_err(Error::wrap)
    }
}

impl Differentiable<2, 1> for Norm {
    fn backward(&self, place: &Place, [x, weight]: [&Tensor; 2], _: (&Tensor, &[Tensor]), up: &Tensor) -> Result<[Tensor; 2]> {
        let [dx, d_weight, ..] = run(place, &NormBackward { eps: self.eps }, [up, x, weight])?;
        Ok([dx, d_weight])
    }
}

/// `dy, x, weight -> dx, d_weight`, and working memory.
struct NormBackward {
    eps: f32,
}

impl Compute<3, 4> for NormBackward {
    const NAME: &'static str = "rmsnorm's way back";

    fn outputs(&self, [_, x, weight]: [&Shape; 3]) -> [Shape; 4] {
        let width = weight.elem_count();
        let (scales, parts) = rmsnorm::cuda::scratch_len(x.elem_count() / width.max(1), width);
        [x.clone(), weight.clone(), scales.into(), parts.into()]
    }

    fn host(&self, cpu: &Cpu, [dy, x, weight]: [&[f32]; 3], outputs: [&mut [f32]; 4]) -> Result<()> {
        let [dx, d_weight, rstd, _] = outputs;
        rmsnorm::forward(cpu, x, weight, self.eps, &mut vec![0.0; x.len()], rstd);
        rmsnorm::backward(cpu, rmsnorm::Backward { dy, x, weight, rstd, dx, d_weight });
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, [dy, x, weight]: [CudaView<'_, f32>; 3], outputs: [CudaViewMut<'_, f32>; 4]) -> Result<()> {
        let [mut dx, mut d_weight, mut rstd, mut parts] = outputs;
        let gradients = (&mut dx, &mut d_weight);
        rmsnorm::cuda::backward(gpu, (&dy, &x), &weight, self.eps, gradients, (&mut rstd, &mut parts)).map_err(Error::wrap)
    }
}

/// `x, delta, weight -> x + delta, its norm`, without a way back.
pub(super) struct AddNorm {
    pub(super) eps: f32,
}

impl Compute<3, 2> for AddNorm {
    const NAME: &'static str = "rmsnorm of a sum";

    fn outputs(&self, [x, ..]: [&Shape; 3]) -> [Shape; 2] {
        [x.clone(), x.clone()]
    }

    fn host(&self, cpu: &Cpu, [x, delta, weight]: [&[f32]; 3], [sum, y]: [&mut [f32]; 2]) -> Result<()> {
        sum.iter_mut().zip(x).zip(delta).for_each(|((sum, x), delta)| *sum = x + delta);
        rmsnorm::forward(cpu, sum, weight, self.eps, y, &mut vec![0.0; x.len() / weight.len()]);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, [x, delta, weight]: [CudaView<'_, f32>; 3], outputs: [CudaViewMut<'_, f32>; 2]) -> Result<()> {
        let [mut sum, mut y] = outputs;
        rmsnorm::cuda::forward_add(gpu, (&x, &delta), &weight, self.eps, &mut sum, &mut y).map_err(Error::wrap)
    }
}
