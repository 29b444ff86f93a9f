//! The candle engine: the same decoder on candle's tensors, on the CPU as parity reference and on CUDA.
//!
//! Invariants (beyond **B3** of [`Backend`]; **B1** is the native engine's alone: here bits depend on the batch)
//! - **C1** every operation between a parameter and a log-prob has a gradient. candle's fused `rms_norm`, `softmax_last_dim`
//!   and `rope` have none and give no error, so they are not used; a test asks for a gradient of every parameter.
//!   The parts of a block exist in two forms (`form`): candle's primitives, which the CPU runs, and our CUDA kernels.
//! - **C2** equal calls in equal order give equal bits on one device.
//! - **C3** logits of a training pass are never kept: the way back computes them again, a chunk of targets at a time.
//!
//! Files: `decoder` the network; `form` the seam between its two forms, `primitives` and `fused`; `groups` which rows attend
//! together in primitives; `kv` pages; `scores` log-probs from hidden rows; `parameters` weights, gradients, moments, updated by `adamw`;
//! `place` where our kernels run.
mod adamw;
mod decoder;
mod form;
mod fused;
mod groups;
mod kv;
mod parameters;
mod place;
mod primitives;
mod scores;
#[cfg(test)]
mod tests;

use crate::backend::divided;
use crate::{AdamW, Backend, EngineError, Extend, Forward, KvId, PackedBatch, Partition, Upstream, input};
use candle_core::{Device, Tensor};
use cohort_model::{DecoderSpec, DeviceKind, WeightSet};
use decoder::{Decoder, Fresh};
use form::{Form, Item, Pass};
use fused::Fused;
use kv::{KvStore, PAGE};
use parameters::Parameters;
use place::Place;
use primitives::Primitives;
use scores::Targets;
use std::ops::ControlFlow;
use std::sync::Arc;

/// GPUs that this build and machine can compute on.
///
/// # Errors
/// [`EngineError::Device`] when the driver does not answer.
#[cfg(feature = "cuda")]
pub fn gpus() -> Result<usize, EngineError> {
    let found = candle_core::cuda_backend::cudarc::driver::CudaContext::device_count();
    let count = found.map_err(|error| EngineError::Device(format!("the CUDA driver does not answer: {error:?}")))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// GPUs that this build and machine can compute on.
///
/// # Errors
/// [`EngineError::Input`]: this build has no CUDA.
#[cfg(not(feature = "cuda"))]
pub fn gpus() -> Result<usize, EngineError> {
    Err(EngineError::Input("this build has no CUDA; build with `--features cuda`".into()))
}

/// A decoder in candle operations, f32.
pub struct CandleEngine {
    spec: DecoderSpec,
    device: Device,
    place: Arc<Place>,
    parameters: Parameters,
    form: Box<dyn Form>,
    kv: KvStore,
    pending: Option<Pending>,
    /// An update that the device did not finish.
    broken: Option<EngineError>,
}

/// What the last training pass left for the way back.
struct Pending {
    /// Hidden rows that predict the targets, with their graph. `[M, H]`
    rows: Tensor,
    targets: Targets,
}

impl CandleEngine {
    /// All weights zero until [`Backend::import`]. `kv_budget_bytes` bounds the key/value pages of all sequences together.
    /// CUDA runs our kernels, the CPU candle's primitives.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the architecture's numbers do not fit together, or this build has no CUDA;
    /// [`EngineError::Device`] when the device cannot be opened or has no memory for the weights.
    pub fn new(spec: DecoderSpec, device: DeviceKind, kv_budget_bytes: usize) -> Result<Self, EngineError> {
        input::spec(&spec)?;
        let device = open(device)?;
        let place = Arc::new(Place::of(&device).map_err(failed)?);
        let parameters = Parameters::zeros(&spec, &device, &place).map_err(failed)?;
        let form: Box<dyn Form> = if device.is_cuda() && Fused::fits(&spec) {
            Box::new(Fused::new(&spec, &device, &place).map_err(failed)?)
        } else {
            Box::new(Primitives::new(&spec, &device).map_err(failed)?)
        };
        let kv = KvStore::new(&spec, &device, kv_budget_bytes);
        Ok(Self { spec, device, place, parameters, form, kv, pending: None, broken: None })
    }

    /// The same engine with our kernels' operations; on the CPU each is computed by its twin of the native engine.
    ///
    /// # Errors
    /// [`EngineError::Input`] when a head is wider than the kernels take; [`EngineError::Device`] when the device fails.
    pub fn fused(mut self) -> Result<Self, EngineError> {
        if !Fused::fits(&self.spec) {
            let (got, most) = (self.spec.head_dim, fused::MAX_HEAD_DIM);
            return Err(EngineError::Input(format!("heads of {got} values; the fused operations take up to {most}")));
        }
        self.form = Box::new(Fused::new(&self.spec, &self.device, &self.place).map_err(failed)?);
        self.pending = None;
        Ok(self)
    }

    fn decoder(&self, pass: &Arc<Pass>) -> candle_core::Result<Decoder<'_>> {
        Ok(Decoder { spec: &self.spec, weights: self.parameters.network(pass.track)?, operations: self.form.pass(pass)? })
    }

    /// Hidden rows that predict the targets of a batch. `[M, H]`
    fn target_rows(&self, batch: &PackedBatch, targets: &Targets, track: bool) -> candle_core::Result<Tensor> {
        let pass = Arc::new(Pass::packed(batch.sequences.iter().map(|s| s.tokens.len()), track));
        let tokens: Vec<u32> = batch.sequences.iter().flat_map(|s| s.tokens.iter().copied()).collect();
        let decoder = self.decoder(&pass)?;
        let hidden = decoder.hidden(&tokens, &pass, &mut Fresh)?; // [N, H]
        let rows = Tensor::new(targets.rows.as_slice(), &self.device)?;
        decoder.final_norm(hidden.index_select(&rows, 0)?) // [N, H] -> [M, H]
    }

    /// Whether the weights are those of a whole update.
    fn usable(&self) -> Result<(), EngineError> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    fn extend_checked(&mut self, work: &[Extend<'_>], logits: &mut [f32]) -> candle_core::Result<()> {
        let items: Vec<Item> = work.iter().map(|w| Item { past: self.kv.len(w.kv), new: w.tokens.len() }).collect();
        let pass = Arc::new(Pass::cached(items, work.iter().map(|w| self.kv.pages(w.kv)).collect(), PAGE));
        let tokens: Vec<u32> = work.iter().flat_map(|w| w.tokens.iter().copied()).collect();
        let decoder = self.decoder(&pass)?;
        let hidden = decoder.hidden(&tokens, &pass, &mut self.kv.writer())?; // [N, H]
        let mut last = 0u32;
        let lasts: Vec<u32> = pass
            .items
            .iter()
            .map(|item| {
                last += item.new as u32;
                last - 1
            })
            .collect();
        let rows = hidden.index_select(&Tensor::new(lasts, &self.device)?, 0)?; // [N, H] -> [B, H]
        let out = decoder.final_norm(rows)?.matmul(&decoder.weights.head.t()?)?; // [B, H] -> [B, V]
        logits.copy_from_slice(&out.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}

impl Backend for CandleEngine {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn numerics(&self) -> String {
        let place = if self.device.is_cuda() { "cuda" } else { "cpu" };
        format!("candle f32 {place} {} 1 (bits depend on batch and device)", self.form.name())
    }

    fn import(&mut self, weights: &WeightSet) -> Result<(), EngineError> {
        weights.check(&self.spec).map_err(|e| EngineError::Input(e.to_string()))?;
        self.parameters.import(weights).map_err(failed)?;
        self.pending = None;
        Ok(())
    }

    fn export(&self) -> Result<WeightSet, EngineError> {
        self.usable()?;
        self.parameters.export().map_err(failed)
    }

    fn kv_open(&mut self) -> Result<KvId, EngineError> {
        self.kv.open()
    }

    fn kv_fork(&mut self, from: KvId, len: usize) -> Result<KvId, EngineError> {
        self.kv.fork(from, len)
    }

    fn kv_len(&self, kv: KvId) -> usize {
        self.kv.len(kv)
    }

    fn kv_truncate(&mut self, kv: KvId, len: usize) {
        self.kv.truncate(kv, len);
    }

    fn kv_close(&mut self, kv: KvId) {
        self.kv.close(kv);
    }

    fn extend(&mut self, work: &[Extend<'_>], logits: &mut [f32]) -> Result<(), EngineError> {
        self.usable()?;
        input::extend(&self.spec, work, logits.len(), |kv| self.kv.contains(kv).then(|| self.kv.len(kv)))?;
        if work.is_empty() {
            return Ok(());
        }
        let growth: Vec<_> = work.iter().map(|item| (item.kv, item.tokens.len())).collect();
        self.kv.reserve(&growth)?;
        self.extend_checked(work, logits).map_err(failed)?;
        self.kv.advance(&growth);
        Ok(())
    }

    fn forward(&mut self, batch: &PackedBatch, train: bool) -> Result<Forward, EngineError> {
        self.usable()?;
        input::batch(&self.spec, batch)?;
        let targets = Targets::of(batch);
        if train {
            self.pending = None;
        }
        if targets.is_empty() {
            return Ok(Forward::default());
        }
        let rows = self.target_rows(batch, &targets, train).map_err(failed)?;
        let head = self.parameters.network(false).map_err(failed)?.head;
        let result = scores::forward(&*self.form, &rows.detach(), &head, &targets).map_err(failed)?;
        if let Some(at) = result.logp.iter().position(|logp| !logp.is_finite()) {
            return Err(EngineError::NonFinite(format!(
                "log-prob of target {at} of {} is {}; the weights are broken or the target has no probability",
                result.logp.len(),
                result.logp[at]
            )));
        }
        if train {
            self.pending = Some(Pending { rows, targets });
        }
        Ok(result)
    }

    fn backward(&mut self, upstream: Upstream<'_>) -> Result<(), EngineError> {
        let Some(Pending { rows, targets }) = self.pending.take() else {
            return Err(EngineError::Input("backward without a forward in training before it, under the same weights".into()));
        };
        let (got, want) = (upstream.d_logp.len(), targets.len());
        if got != want || upstream.d_entropy.is_some_and(|d| d.len() != want) {
            self.pending = Some(Pending { rows, targets });
            return Err(EngineError::Input(format!("gradients of {got} log-probs where the forward had {want} targets")));
        }
        let finite = |values: &[f32]| values.iter().all(|x| x.is_finite());
        if !finite(upstream.d_logp) || !upstream.d_entropy.is_none_or(finite) {
            self.pending = Some(Pending { rows, targets });
            return Err(EngineError::NonFinite("a gradient of the loss by a log-prob or an entropy is not finite".into()));
        }
        let head = self.parameters.network(true).map_err(failed)?.head;
        let mut sum = self.parameters.accumulation();
        let mut run = || -> candle_core::Result<()> {
            let d_rows = scores::backward(&*self.form, &rows.detach(), &head, &targets, upstream, |grads| sum.add(grads))?;
            // d(rows · d_rows)/dw is the gradient of the loss by everything below the rows.
            sum.add(&(&rows * d_rows)?.sum_all()?.backward()?)
        };
        run().map_err(failed)?;
        let gradients = sum.finish();
        self.parameters.set_gradients(gradients);
        Ok(())
    }

    fn zero_grad(&mut self) {
        self.parameters.zero_grad();
    }

    fn grad_norm(&mut self) -> Result<f64, EngineError> {
        self.parameters.grad_norm().map_err(failed)
    }

    fn update(&mut self, optimizer: &AdamW, lr: f64, grad_scale: f64) -> Result<(), EngineError> {
        divided(self.parameters.partition(), "an update")?;
        self.update_partition(optimizer, lr, grad_scale, &mut |_| ControlFlow::Continue(()))
    }

    fn update_partition(
        &mut self,
        optimizer: &AdamW,
        lr: f64,
        grad_scale: f64,
        exchange: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.usable()?;
        let norm = self.parameters.grad_norm().map_err(failed)?;
        if !(norm * grad_scale).is_finite() || !lr.is_finite() {
            return Err(EngineError::NonFinite(format!(
                "gradient norm is {norm} (scale {grad_scale}, learning rate {lr}); nothing was changed: drop the step, or lower \
                 the learning rate or the gradient clip"
            )));
        }
        self.pending = None;
        self.parameters.update(optimizer, (lr, grad_scale), exchange).map_err(failed).inspect_err(|error| {
            self.broken = Some(EngineError::Device(format!("an update was not finished, the weights are lost: {error}")));
        })?;
        Ok(())
    }

    fn each_gradient(&mut self, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        self.parameters.each_gradient(visit).map_err(failed)
    }

    fn gradients(&self) -> Result<WeightSet, EngineError> {
        self.parameters.gradients().map_err(failed)
    }

    fn updates(&self) -> u64 {
        self.parameters.updates()
    }

    fn partition(&self) -> Partition {
        self.parameters.partition()
    }

    fn keep_partition(&mut self, part: Partition) -> Result<(), EngineError> {
        if self.parameters.partition() != part {
            divided(self.parameters.partition(), "another part")?;
            self.parameters.cut(part).map_err(failed)?;
        }
        Ok(())
    }

    fn take_partition(
        &mut self,
        part: Partition,
        updates: u64,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.parameters.take(part, updates, fill).map_err(failed)
    }

    fn each_moment(&mut self, part: Partition, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        if self.parameters.partition() != part {
            divided(self.parameters.partition(), "another part")?;
        }
        self.parameters.each_moment(part, visit).map_err(failed)
    }

    fn optimizer_gather(
        &mut self,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        self.parameters.gather(fill).map_err(failed)
    }

    fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        divided(self.parameters.partition(), "the export")?;
        self.parameters.optimizer_export().map_err(failed)
    }

    fn optimizer_import(&mut self, first: &WeightSet, second: &WeightSet, updates: u64) -> Result<(), EngineError> {
        for set in [first, second] {
            set.check(&self.spec).map_err(|e| EngineError::Input(e.to_string()))?;
        }
        self.parameters.optimizer_import(first, second, updates).map_err(failed)
    }
}

fn open(device: DeviceKind) -> Result<Device, EngineError> {
    match device {
        DeviceKind::Cpu => Ok(Device::Cpu),
        #[cfg(feature = "cuda")]
        DeviceKind::Cuda => Device::new_cuda(0).map_err(failed),
        #[cfg(not(feature = "cuda"))]
        DeviceKind::Cuda => Err(EngineError::Input(
            "model.device = \"cuda\": this build has no CUDA; build with `--features cuda`, or set model.device = \"cpu\"".into(),
        )),
    }
}

/// A failure of the device or of candle.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn failed(error: candle_core::Error) -> EngineError {
    // Only the first line: the rest is candle's backtrace.
    let text = error.to_string();
    EngineError::Device(text.lines().next().unwrap_or_default().to_owned())
}
