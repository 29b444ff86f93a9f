//! `silu(gate) * up`.
use super::run::{Compute, Differentiable, run};
use crate::candle::place::Place;
use candle_core::{Result, Shape, Tensor};
use cohort_kernels::{Cpu, swiglu};
#[cfg(feature = "cuda")]
use {
    candle_core::Error,
    candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut},
    cohort_kernels::cuda::Gpu,
};

/// `gate, up -> h`.
pub(super) struct SwiGlu;

impl Compute<2, 1> for SwiGlu {
    const NAME: &'static str = "swiglu";

    fn outputs(&self, [gate, _]: [&Shape; 2]) -> [Shape; 1] {
        [gate.clone()]
    }

    fn host(&self, cpu: &Cpu, [gate, up]: [&[f32]; 2], [h]: [&mut [f32]; 1]) -> Result<()> {
        swiglu::forward(cpu, gate, up, h);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, [gate, up]: [CudaView<'_, f32>; 2], [mut h]: [CudaViewMut<'_, f32>; 1]) -> Result<()> {
        swiglu::cuda::forward(gpu, &gate, &up, &mut h).map_err(Error::wrap)
    }
}

impl Differentiable<2, 1> for SwiGlu {
    fn backward(&self, place: &Place, [gate, up]: [&Tensor; 2], _: (&Tensor, &[Tensor]), dh: &Tensor) -> Result<[Tensor; 2]> {
        run(place, &SwiGluBackward, [dh, gate, up])
    }
}

/// `dh, gate, up -> d_gate, d_up`.
struct SwiGluBackward;

impl Compute<3, 2> for SwiGluBackward {
    const NAME: &'static str = "swiglu's way back";

    fn outputs(&self, [_, gate, up]: [&Shape; 3]) -> [Shape; 2] {
        [gate.clone(), up.clone()]
    }

    fn host(&self, cpu: &Cpu, [dh, gate, up]: [&[f32]; 3], [d_gate, d_up]: [&mut [f32]; 2]) -> Result<()> {
        d_gate.copy_from_slice(gate);
        d_up.copy_from_slice(up);
        swiglu::backward(cpu, dh, d_gate, d_up);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, [dh, gate, up]: [CudaView<'_, f32>; 3], outputs: [CudaViewMut<'_, f32>; 2]) -> Result<()> {
        let [mut d_gate, mut d_up] = outputs;
        swiglu::cuda::backward(gpu, &dh, (&gate, &up), (&mut d_gate, &mut d_up)).map_err(Error::wrap)
    }
}
