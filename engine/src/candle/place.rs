//! Where our kernels run: a GPU's stream, or the native engine's twins on the CPU.
use candle_core::{Device, Error, Result};
use cohort_kernels::Cpu;

/// The device of an engine.
pub(super) enum Place {
    Host(Cpu),
    #[cfg(feature = "cuda")]
    Gpu(cohort_kernels::cuda::Gpu, candle_core::CudaDevice),
}

impl Place {
    pub(super) fn of(device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Host(Cpu::new(0, 0))),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Self::Gpu(cohort_kernels::cuda::Gpu::new(device.cuda_stream()), device.clone())),
            other => Err(Error::Msg(format!("no kernels for {other:?}"))),
        }
    }

    /// The CPU's threads, for operands of the CPU.
    pub(super) fn host(&self) -> Result<&Cpu> {
        match self {
            Self::Host(cpu) => Ok(cpu),
            #[cfg(feature = "cuda")]
            Self::Gpu(..) => Err(misplaced("an operation of the CPU")),
        }
    }
}

/// What is said of operands that do not lie where the operation runs.
pub(super) fn misplaced(name: &str) -> Error {
    Error::Msg(format!("{name}: operands of another device or number format"))
}
