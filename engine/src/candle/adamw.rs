//! AdamW in one pass over a weight, its gradient and its moments, in place.
use super::place::{Place, misplaced};
use candle_core::{CpuStorage, Error, InplaceOp2, Layout, Result, Tensor};
use cohort_kernels::adamw::{self, Step};
use std::cell::RefCell;
use std::ops::Range;
#[cfg(feature = "cuda")]
use {candle_core::CudaStorage, candle_core::cuda_backend::cudarc::driver::CudaSlice};

/// First and second moments of one weight. Not tensors of candle: those cannot be changed together with a weight.
pub(super) enum Moments {
    Host(Vec<f32>, Vec<f32>),
    #[cfg(feature = "cuda")]
    Gpu(CudaSlice<f32>, CudaSlice<f32>),
}

impl Moments {
    pub(super) fn zeros(place: &Place, len: usize) -> Result<Self> {
        match place {
            Place::Host(_) => Ok(Self::Host(vec![0.0; len], vec![0.0; len])),
            #[cfg(feature = "cuda")]
            Place::Gpu(_, device) => Ok(Self::Gpu(device.alloc_zeros(len)?, device.alloc_zeros(len)?)),
        }
    }

    pub(super) fn upload(place: &Place, first: &[f32], second: &[f32]) -> Result<Self> {
        match place {
            Place::Host(_) => Ok(Self::Host(first.to_vec(), second.to_vec())),
            #[cfg(feature = "cuda")]
            Place::Gpu(_, device) => Ok(Self::Gpu(device.clone_htod(first)?, device.clone_htod(second)?)),
        }
    }

    /// Those of a range of the weight's values.
    pub(super) fn cut(&self, place: &Place, range: Range<usize>) -> Result<Self> {
        let (first, second) = self.download(place)?;
        Self::upload(place, &first[range.clone()], &second[range])
    }

    /// First and second.
    pub(super) fn download(&self, place: &Place) -> Result<(Vec<f32>, Vec<f32>)> {
        match (self, place) {
            (Self::Host(first, second), _) => Ok((first.clone(), second.clone())),
            #[cfg(feature = "cuda")]
            (Self::Gpu(first, second), Place::Gpu(_, device)) => Ok((device.clone_dtoh(first)?, device.clone_dtoh(second)?)),
            #[cfg(feature = "cuda")]
            (Self::Gpu(..), Place::Host(_)) => Err(misplaced("moments")),
        }
    }
}

/// One update of `weight`, or of as many of its values as there are moments.
pub(super) fn update(place: &Place, step: Step, weight: &Tensor, gradient: &Tensor, moments: &mut Moments) -> Result<()> {
    weight.inplace_op2(&gradient.contiguous()?, &Update { place, step, moments: RefCell::new(moments) })
}

struct Update<'a> {
    place: &'a Place,
    step: Step,
    moments: RefCell<&'a mut Moments>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, weight: &mut CpuStorage, layout: &Layout, gradient: &CpuStorage, from: &Layout) -> Result<()> {
        let mut moments = self.moments.borrow_mut();
        let (Place::Host(cpu), CpuStorage::F32(weight), Moments::Host(first, second)) = (self.place, weight, &mut **moments)
        else {
            return Err(misplaced("adamw"));
        };
        let ((start, end), (from, to)) = (contiguous(layout)?, contiguous(from)?);
        // The CPU's kernel clears the gradient that it has used.
        let mut gradient = gradient.as_slice::<f32>()?[from..to].to_vec();
        adamw::step(cpu, &self.step, &mut weight[start..end], &mut gradient, first, second);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, weight: &mut CudaStorage, layout: &Layout, gradient: &CudaStorage, from: &Layout) -> Result<()> {
        let mut moments = self.moments.borrow_mut();
        let (Place::Gpu(gpu, _), Moments::Gpu(first, second)) = (self.place, &mut **moments) else {
            return Err(misplaced("adamw"));
        };
        let ((start, end), (from, to)) = (contiguous(layout)?, contiguous(from)?);
        let mut weight = weight.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        let gradient = gradient.as_cuda_slice::<f32>()?.slice(from..to);
        let (mut first, mut second) = (first.as_view_mut(), second.as_view_mut());
        adamw::cuda::step(gpu, &self.step, &gradient, &mut weight, (&mut first, &mut second)).map_err(Error::wrap)
    }
}

fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| Error::Msg(format!("adamw: an operand is not contiguous: {layout:?}")))
}
