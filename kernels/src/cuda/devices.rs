//! One test body for every device: the host always, a GPU where the build and the machine have one.
use super::Device;
use super::host::Host;
use std::fmt::Debug;

/// A device that a test can fill and read.
pub(crate) trait Memory: Device<Error: Debug> {
    /// Values of the device.
    type Values<T>;

    fn upload<T: Element>(&self, values: &[T]) -> Self::Values<T>;
    fn download(&self, values: &Self::Values<f32>) -> Vec<f32>;
    fn view<'a, T>(&self, values: &'a Self::Values<T>) -> Self::View<'a, T>;
    fn view_mut<'a, T>(&self, values: &'a mut Self::Values<T>) -> Self::ViewMut<'a, T>;

    /// Memory to write: NaN, so that a value left out is seen.
    fn blank(&self, len: usize) -> Self::Values<f32> {
        self.upload(&vec![f32::NAN; len])
    }
}

#[cfg(not(feature = "cuda"))]
pub(crate) trait Element: Copy {}
#[cfg(feature = "cuda")]
pub(crate) trait Element: Copy + cudarc::driver::DeviceRepr {}
impl Element for f32 {}
impl Element for u32 {}

impl Memory for Host {
    type Values<T> = Vec<T>;

    fn upload<T: Element>(&self, values: &[T]) -> Vec<T> {
        values.to_vec()
    }

    fn download(&self, values: &Vec<f32>) -> Vec<f32> {
        values.clone()
    }

    fn view<'a, T>(&self, values: &'a Vec<T>) -> &'a [T] {
        values
    }

    fn view_mut<'a, T>(&self, values: &'a mut Vec<T>) -> &'a mut [T] {
        values
    }
}

/// Tests that run a generic body, `fn body<M: Memory>(device: &M)`, on every device.
macro_rules! on_every_device {
    ($($body:ident),+ $(,)?) => {$(
        mod $body {
            #[test]
            fn on_the_host() {
                if let Some(host) = $crate::cuda::host::host() {
                    super::$body(host);
                }
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn on_a_gpu() {
                if let Some(gpu) = $crate::cuda::devices::gpu() {
                    super::$body(&gpu);
                }
            }
        }
    )+};
}
pub(crate) use on_every_device;

#[cfg(feature = "cuda")]
pub(crate) use on_gpu::gpu;

#[cfg(feature = "cuda")]
mod on_gpu {
    use super::super::Gpu;
    use super::{Element, Memory};
    use cudarc::driver::{CudaContext, CudaSlice, CudaView, CudaViewMut};
    use std::io::Write;

    /// The first GPU. `None`, said loudly, on a machine without one, unless COHORT_REQUIRE_GPU asks for one.
    pub(crate) fn gpu() -> Option<Gpu> {
        let found = CudaContext::device_count();
        if found.as_ref().is_ok_and(|count| *count > 0) {
            return Some(Gpu::new(CudaContext::new(0).unwrap().default_stream()));
        }
        assert!(std::env::var_os("COHORT_REQUIRE_GPU").is_none(), "COHORT_REQUIRE_GPU is set and there is no GPU: {found:?}");
        let note = format!("SKIPPED: the CUDA kernels did not run on a GPU: {found:?}\n");
        std::io::stderr().write_all(note.as_bytes()).unwrap();
        None
    }

    impl Memory for Gpu {
        type Values<T> = CudaSlice<T>;

        fn upload<T: Element>(&self, values: &[T]) -> CudaSlice<T> {
            self.stream().clone_htod(values).unwrap()
        }

        fn download(&self, values: &CudaSlice<f32>) -> Vec<f32> {
            self.stream().clone_dtoh(values).unwrap()
        }

        fn view<'a, T>(&self, values: &'a CudaSlice<T>) -> CudaView<'a, T> {
            values.as_view()
        }

        fn view_mut<'a, T>(&self, values: &'a mut CudaSlice<T>) -> CudaViewMut<'a, T> {
            values.as_view_mut()
        }
    }
}
