//! Operations of our kernels on candle's tensors: operands out of storages, results into tensors, nodes of the graph.
use crate::candle::place::{Place, misplaced};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor};
use cohort_kernels::Cpu;
use std::sync::{Arc, OnceLock};
#[cfg(feature = "cuda")]
use {
    candle_core::CudaStorage,
    candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut},
    cohort_kernels::cuda::Gpu,
};

/// An operation with `N` inputs and `M` outputs, all f32 and contiguous.
pub(super) trait Compute<const N: usize, const M: usize>: Send + Sync {
    /// For errors.
    const NAME: &'static str;
    /// Shapes of the outputs.
    fn outputs(&self, inputs: [&Shape; N]) -> [Shape; M];
    /// The CPU's twin. Outputs begin as zeros.
    fn host(&self, cpu: &Cpu, inputs: [&[f32]; N], outputs: [&mut [f32]; M]) -> Result<()>;
    /// The CUDA kernels. Outputs begin as anything.
    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, inputs: [CudaView<'_, f32>; N], outputs: [CudaViewMut<'_, f32>; M]) -> Result<()>;
}

/// An operation with a way back. Its first output goes on in the graph, the others are kept for the way back.
pub(super) trait Differentiable<const N: usize, const M: usize>: Compute<N, M> + 'static {
    /// Gradients with respect to the inputs, from the result's, `up`.
    fn backward(&self, place: &Place, inputs: [&Tensor; N], result: (&Tensor, &[Tensor]), up: &Tensor) -> Result<[Tensor; N]>;
}

/// Runs an operation outside of any graph.
pub(super) fn run<const N: usize, const M: usize, O: Compute<N, M>>(
    place: &Place,
    operation: &O,
    inputs: [&Tensor; N],
) -> Result<[Tensor; M]> {
    let inputs = every(inputs.map(Tensor::contiguous))?;
    let guards = inputs.each_ref().map(Tensor::storage_and_layout);
    let stored = match place {
        Place::Host(cpu) => {
            let operands = every(guards.each_ref().map(|(storage, layout)| match &**storage {
                Storage::Cpu(storage) => Ok((storage, *layout)),
                _ => Err(misplaced(O::NAME)),
            }))?;
            on_host(cpu, operation, operands)?.map(|(storage, shape)| (Storage::Cpu(storage), shape))
        }
        #[cfg(feature = "cuda")]
        Place::Gpu(gpu, device) => {
            let operands = every(guards.each_ref().map(|(storage, layout)| match &**storage {
                Storage::Cuda(storage) => Ok((storage, *layout)),
                _ => Err(misplaced(O::NAME)),
            }))?;
            on_gpu(gpu, device, operation, operands)?.map(|(storage, shape)| (Storage::Cuda(storage), shape))
        }
    };
    Ok(stored.map(|(storage, shape)| Tensor::from_storage(storage, shape, BackpropOp::none(), false)))
}

fn on_host<const N: usize, const M: usize, O: Compute<N, M>>(
    cpu: &Cpu,
    operation: &O,
    inputs: [(&CpuStorage, &Layout); N],
) -> Result<[(CpuStorage, Shape); M]> {
    let shapes = operation.outputs(inputs.map(|(_, layout)| layout.shape()));
    let values = every(inputs.map(|(storage, layout)| {
        let (start, end) = range(O::NAME, layout)?;
        Ok(&storage.as_slice::<f32>()?[start..end])
    }))?;
    let mut outputs = shapes.each_ref().map(|shape| vec![0.0; shape.elem_count()]);
    operation.host(cpu, values, outputs.each_mut().map(Vec::as_mut_slice))?;
    let mut outputs = outputs.into_iter();
    Ok(shapes.map(|shape| (CpuStorage::F32(outputs.next().unwrap_or_default()), shape)))
}

#[cfg(feature = "cuda")]
fn on_gpu<const N: usize, const M: usize, O: Compute<N, M>>(
    gpu: &Gpu,
    device: &candle_core::CudaDevice,
    operation: &O,
    inputs: [(&CudaStorage, &Layout); N],
) -> Result<[(CudaStorage, Shape); M]> {
    let shapes = operation.outputs(inputs.map(|(_, layout)| layout.shape()));
    let views = every(inputs.map(|(storage, layout)| {
        let (start, end) = range(O::NAME, layout)?;
        storage.as_cuda_slice::<f32>()?.try_slice(start..end).ok_or_else(|| misplaced(O::NAME))
    }))?;
    let mut outputs = every(shapes.each_ref().map(|shape| gpu.unfilled(shape.elem_count()).map_err(Error::wrap)))?;
    let mut lengths = shapes.each_ref().map(Shape::elem_count).into_iter();
    operation.gpu(gpu, views, outputs.each_mut().map(|output| output.slice_mut(..lengths.next().unwrap_or(0))))?;
    let mut outputs = outputs.map(|output| CudaStorage::wrap_cuda_slice(output, device.clone())).into_iter();
    let pairs = shapes.map(|shape| outputs.next().map(|output| (output, shape)).ok_or_else(|| misplaced(O::NAME)));
    every(pairs)
}

fn range(name: &str, layout: &Layout) -> Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| Error::Msg(format!("{name}: an operand is not contiguous: {layout:?}")))
}

/// All, or the first error.
fn every<T, const N: usize>(results: [Result<T>; N]) -> Result<[T; N]> {
    let values = results.into_iter().collect::<Result<Vec<T>>>()?;
    values.try_into().map_err(|_| Error::Msg("as many as there were".into()))
}

/// An operation as a node of candle's graph.
pub(super) struct Node<O, const M: usize> {
    operation: O,
    place: Arc<Place>,
    /// Outputs behind the first.
    kept: OnceLock<Vec<Tensor>>,
}

impl<O, const M: usize> Node<O, M> {
    pub(super) fn new(operation: O, place: &Arc<Place>) -> Self {
        Self { operation, place: place.clone(), kept: OnceLock::new() }
    }

    /// The first output; the others are kept.
    fn split<S>(&self, name: &str, outputs: [(S, Shape); M], tensor: impl Fn(S) -> Storage) -> Result<(S, Shape)> {
        let mut outputs = outputs.into_iter();
        let first = outputs.next().ok_or_else(|| misplaced(name))?;
        let kept = outputs.map(|(storage, shape)| Tensor::from_storage(tensor(storage), shape, BackpropOp::none(), false));
        // A node runs forward once.
        self.kept.get_or_init(|| kept.collect());
        Ok(first)
    }

    fn host<const N: usize>(&self, inputs: [(&CpuStorage, &Layout); N]) -> Result<(CpuStorage, Shape)>
    where
        O: Compute<N, M>,
    {
        self.split(O::NAME, on_host(self.place.host()?, &self.operation, inputs)?, Storage::Cpu)
    }

    #[cfg(feature = "cuda")]
    fn gpu<const N: usize>(&self, inputs: [(&CudaStorage, &Layout); N]) -> Result<(CudaStorage, Shape)>
    where
        O: Compute<N, M>,
    {
        let Place::Gpu(gpu, device) = &*self.place else { return Err(misplaced(O::NAME)) };
        self.split(O::NAME, on_gpu(gpu, device, &self.operation, inputs)?, Storage::Cuda)
    }

    fn way_back<const N: usize>(&self, inputs: [&Tensor; N], result: &Tensor, up: &Tensor) -> Result<[Option<Tensor>; N]>
    where
        O: Differentiable<N, M>,
    {
        let kept = self.kept.get().map_or(&[][..], Vec::as_slice);
        Ok(self.operation.backward(&self.place, inputs, (result, kept), up)?.map(Some))
    }
}

impl<O: Differentiable<1, M>, const M: usize> CustomOp1 for Node<O, M> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.host([(s, l)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s: &CudaStorage, l: &Layout) -> Result<(CudaStorage, Shape)> {
        self.gpu([(s, l)])
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, up: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = self.way_back([x], result, up)?;
        Ok(dx)
    }
}

impl<O: Differentiable<2, M>, const M: usize> CustomOp2 for Node<O, M> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        self.host([(s1, l1), (s2, l2)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        self.gpu([(s1, l1), (s2, l2)])
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, result: &Tensor, up: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.way_back([a, b], result, up)?.into())
    }
}

impl<O: Differentiable<3, M>, const M: usize> CustomOp3 for Node<O, M> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.host([(s1, l1), (s2, l2), (s3, l3)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.gpu([(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        up: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.way_back([a, b, c], result, up)?.into())
    }
}
