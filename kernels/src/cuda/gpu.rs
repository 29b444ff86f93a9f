//! A stream of a GPU as a device.
#![expect(unsafe_code, reason = "a launch hands raw operands to a kernel")]
use super::{Device, Grid, Kernel, Operand};
use cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, CudaViewMut, DriverError, LaunchConfig, PushKernelArg,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernels as PTX, by folder: the driver compiles them for its GPU when the first of a folder is launched.
const CODE: [(&str, &str); 7] = [
    ("adamw", include_str!(concat!(env!("OUT_DIR"), "/adamw.ptx"))),
    ("attention", include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"))),
    ("logprob", include_str!(concat!(env!("OUT_DIR"), "/logprob.ptx"))),
    ("rmsnorm", include_str!(concat!(env!("OUT_DIR"), "/rmsnorm.ptx"))),
    ("rope", include_str!(concat!(env!("OUT_DIR"), "/rope.ptx"))),
    ("swiglu", include_str!(concat!(env!("OUT_DIR"), "/swiglu.ptx"))),
    ("tree", include_str!(concat!(env!("OUT_DIR"), "/tree.ptx"))),
];

/// Why a launch or an allocation failed.
#[derive(Debug)]
pub struct GpuError {
    what: &'static str,
    error: DriverError,
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.what, self.error)
    }
}

impl std::error::Error for GpuError {}

/// One stream of one GPU. Launches run in the order in which they were asked for.
pub struct Gpu {
    stream: Arc<CudaStream>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<Kernel, CudaFunction>,
}

impl Gpu {
    /// Kernels are loaded when they are first launched.
    #[must_use]
    pub fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, loaded: Mutex::default() }
    }

    /// Where the kernels run.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Memory for at least `len` values (never none), which hold anything.
    ///
    /// # Errors
    /// When the device has no memory for it.
    pub fn unfilled(&self, len: usize) -> Result<CudaSlice<f32>, GpuError> {
        // SAFETY: whatever the memory holds is a number.
        let memory = unsafe { self.stream.alloc(len.max(1)) };
        memory.map_err(|error| GpuError { what: "allocation", error })
    }

    fn function(&self, kernel: Kernel) -> Result<CudaFunction, DriverError> {
        // What a panicking thread left is complete entries only.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(&kernel) {
            return Ok(function.clone());
        }
        let module = match loaded.modules.get(kernel.folder) {
            Some(module) => module.clone(),
            None => {
                let code = CODE.iter().find(|(folder, _)| *folder == kernel.folder).map_or("", |(_, code)| code);
                let module = self.stream.context().load_module(code.into())?;
                loaded.modules.insert(kernel.folder, module.clone());
                module
            }
        };
        let function = module.load_function(kernel.name)?;
        loaded.functions.insert(kernel, function.clone());
        Ok(function)
    }
}

impl Device for Gpu {
    type View<'a, T: 'a> = CudaView<'a, T>;
    type ViewMut<'a, T: 'a> = CudaViewMut<'a, T>;
    type Error = GpuError;

    fn len<T>(view: &CudaView<'_, T>) -> usize {
        view.len()
    }

    fn len_mut<T>(view: &CudaViewMut<'_, T>) -> usize {
        view.len()
    }

    fn again<'b, T>(view: &'b CudaView<'_, T>) -> CudaView<'b, T> {
        view.slice(..)
    }

    fn again_mut<'b, T>(view: &'b mut CudaViewMut<'_, T>) -> CudaViewMut<'b, T> {
        view.slice_mut(..)
    }

    fn read<'b, T>(view: &'b CudaViewMut<'_, T>) -> CudaView<'b, T> {
        view.as_view()
    }

    fn launch(&self, kernel: Kernel, grid: Grid, mut operands: Vec<Operand<'_, Self>>) -> Result<(), GpuError> {
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let failed = |error| GpuError { what: kernel.name, error };
        let function = self.function(kernel).map_err(failed)?;
        let mut launch = self.stream.launch_builder(&function);
        for operand in &mut operands {
            match operand {
                Operand::In(view) => launch.arg(&*view),
                Operand::Indices(view) => launch.arg(&*view),
                Operand::Out(view) => launch.arg(&mut *view),
                Operand::Count(count) => launch.arg(&*count),
                Operand::Factor(factor) => launch.arg(&*factor),
            };
        }
        let (threads, shared_mem_bytes) = (grid.threads, grid.shared_bytes);
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (threads, 1, 1), shared_mem_bytes };
        // SAFETY: only the operations' `cuda.rs` call this. They pass the operands of the kernel's parameters in order, with
        // their lengths checked against the grid, and kernels stay inside them whatever they read (G2). Parity tests run the
        // same calls with guards around every operand. Views keep their memory alive and record their use for other streams.
        unsafe { launch.launch(config) }.map_err(failed)?;
        Ok(())
    }
}
