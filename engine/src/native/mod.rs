//! The native engine: explicit forward and backward of a decoder of any [`Family`](cohort_model::Family) over packed arenas, on the CPU.
//!
//! Invariants (beyond those of [`Backend`])
//! - **N1** parameters, gradients and moments live once, in the packed layout; gradients and moments exist only from the
//!   first training call on, so that a sampler costs its parameters and its key/value pages.
//! - **N2** one function computes a block for prefill, decode and training; nothing else does.
//! - **N3** large buffers are kept between calls and grow to the largest call seen.
//! - **N4** in bf16 the factors of every matrix product are rounded to bf16 and summed up in f32; all else, the residual stream,
//!   attention, keys and values, gradients and moments, is f32.
//! - **N5** with int8 sampling, [`Backend::extend`] multiplies with int8 copies and nothing else does: a learner's log-probs are
//!   its own, and what was sampled is marked as inexact ([`Backend::is_exact`]). Only an engine that keeps nothing else scores with
//!   them too.
//!
//! Files: `making` what an engine is made with; `layout` where tensors lie; `weights` parameters in either format; `quantized` their int8 copies; `kv` pages; `block` one block forward; `norm` the residual stream's norms; `packing` rows of a training pass; `passes` of the engine;
//! `forward` the way there; `record` what sampling keeps for training; `workspace` buffers; `backward` the way back; `optimizer` gradients, moments, update; `lora` adapters beside frozen parameters.
mod backward;
mod block;
mod forward;
mod kv;
mod layout;
mod lora;
mod making;
mod norm;
mod optimizer;
mod packing;
mod passes;
mod quantized;
mod record;
#[cfg(test)]
mod tests;
mod weights;
mod workspace;

use crate::backend::{Done, divided};
use crate::parts::{self, Visit};
use crate::{AdamW, Backend, EngineError, Extend, Forward, KvId, PackedBatch, Partition, Scored, Upstream};
use cohort_kernels::Cpu;
use cohort_kernels::rope::RopeTable;
use cohort_model::spec::TensorSpec;
use cohort_model::{DecoderSpec, DtypeKind, WeightSet};
use forward::Pending;
use kv::KvStore;
use layout::Layout;
use lora::Adapters;
use optimizer::Training;
use record::Record;
use std::ops::{ControlFlow, Range};
use weights::Weights;
use workspace::{BackwardSpace, Kept, Workspace};

/// A decoder on this machine's cores, its matrix products in f32 or bf16.
pub struct NativeEngine {
    spec: DecoderSpec,
    cpu: Cpu,
    layout: Layout,
    weights: Weights,
    rope: RopeTable,
    kv: KvStore,
    workspace: Workspace,
    kept: Kept,
    /// What sampling computed, where a learner is going to want it, and the block of it at hand.
    record: Option<Record>,
    recalled: Kept,
    backward: BackwardSpace,
    pending: Option<Pending>,
    training: Training,
    /// What is trained, where it is not the parameters.
    adapters: Option<Adapters>,
    /// Keys of the next training pass's draws.
    keys: Vec<u64>,
}

impl NativeEngine {
    /// All parameters as products read them: with adapters, merged.
    ///
    /// # Errors
    /// [`EngineError::Input`] of an engine [`for_sampling`](Self::for_sampling) alone.
    pub fn merged(&self) -> Result<WeightSet, EngineError> {
        Ok(self.layout.unpack(&self.cpu, self.weights.arena()?))
    }

    /// Replaces what is trained.
    fn take(&mut self, set: &WeightSet, digest: Option<u64>) -> Result<(), EngineError> {
        self.trained_layout().check(set)?;
        self.forget_passes();
        let (cpu, layout) = (&self.cpu, &self.layout);
        let Some(adapters) = &mut self.adapters else {
            self.weights.import(cpu, layout, set, digest);
            return Ok(());
        };
        adapters.import(cpu, set);
        adapters.merge(cpu, layout, &mut self.weights)
    }

    /// Layout and values of what is trained.
    fn trained(&self) -> Result<(&Layout, &[f32]), EngineError> {
        match &self.adapters {
            Some(adapters) => Ok((&adapters.layout, &adapters.values)),
            None => Ok((&self.layout, self.weights.arena()?)),
        }
    }

    /// Gradients and moments, beside the layout that they have.
    fn training(&mut self) -> (&Layout, &mut Training) {
        let layout = self.adapters.as_ref().map_or(&self.layout, |adapters| &adapters.layout);
        (layout, &mut self.training)
    }

    fn trained_layout(&self) -> &Layout {
        self.adapters.as_ref().map_or(&self.layout, |adapters| &adapters.layout)
    }

    /// Flips one bit of one weight: a test hook, by which the exactness check is shown to notice the smallest difference.
    ///
    /// # Errors
    /// [`EngineError::Input`] when there is no such tensor, element (in the canonical order) or bit.
    pub fn flip_bit(&mut self, name: &str, index: usize, bit: u32) -> Result<(), EngineError> {
        if bit > 31 {
            return Err(EngineError::Input(format!("bit {bit} of an f32, which has 32")));
        }
        let place = self.trained_layout().locate(name, index)?;
        let flip = |values: &mut [f32]| values[place] = f32::from_bits(values[place].to_bits() ^ 1 << bit);
        match &mut self.adapters {
            Some(adapters) => {
                flip(&mut adapters.values);
                adapters.merge(&self.cpu, &self.layout, &mut self.weights)?;
            }
            None => self.weights.change(&self.cpu, &self.layout, |arena| {
                flip(arena);
                Ok(())
            })?,
        }
        self.forget_passes();
        Ok(())
    }
}

impl Backend for NativeEngine {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn numerics(&self) -> String {
        let kind = self.weights.kind();
        let dtype = if kind.halved { DtypeKind::Bf16 } else { DtypeKind::F32 }.name();
        let sampling = if kind.quantized { ", sampling in int8," } else { "" };
        format!("native {dtype}{sampling} batch-invariant 1 (equal bits on every instruction set and for any number of threads)")
    }

    fn is_exact(&self) -> bool {
        !self.weights.kind().quantized
    }

    fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.cpu.pool().run(tasks, task);
    }

    fn import(&mut self, weights: &WeightSet) -> Result<(), EngineError> {
        self.take(weights, None)
    }

    fn import_named(&mut self, weights: &WeightSet, digest: u64) -> Result<(), EngineError> {
        self.take(weights, Some(digest))
    }

    fn export(&self) -> Result<WeightSet, EngineError> {
        let (layout, values) = self.trained()?;
        Ok(layout.unpack(&self.cpu, values))
    }

    fn tensors(&self) -> Result<Vec<TensorSpec>, EngineError> {
        let slots = self.trained_layout().slots();
        Ok(slots.iter().map(|slot| TensorSpec { name: slot.name.clone(), shape: slot.shape.clone() }).collect())
    }

    fn each_part(&self, visit: Visit<'_>) -> Result<(), EngineError> {
        let (layout, values) = self.trained()?;
        layout.each_part(&self.cpu, values, visit);
        Ok(())
    }

    fn digest(&self) -> Result<u64, EngineError> {
        match (&self.adapters, self.weights.imported()) {
            (None, Some(digest)) => Ok(digest),
            _ => parts::digest(self),
        }
    }

    fn kv_open(&mut self) -> Result<KvId, EngineError> {
        self.kv.open()
    }

    fn kv_fork(&mut self, from: KvId, len: usize) -> Result<KvId, EngineError> {
        let to = self.kv.fork(from, len)?;
        if let Some(record) = &mut self.record {
            record.fork(from, to, len);
        }
        Ok(to)
    }

    fn kv_len(&self, kv: KvId) -> usize {
        self.kv.len(kv)
    }

    fn kv_truncate(&mut self, kv: KvId, len: usize) {
        self.kv.truncate(kv, len);
        if let Some(record) = &mut self.record {
            record.truncate(kv, len);
        }
    }

    fn kv_close(&mut self, kv: KvId) {
        self.kv.close(kv);
        if let Some(record) = &mut self.record {
            record.end(kv);
        }
    }

    fn extend(&mut self, work: &[Extend<'_>], logits: &mut [f32]) -> Result<(), EngineError> {
        self.sampling_pass(work, logits)
    }

    fn note_scored(&mut self, scored: &[(KvId, Scored)]) {
        if let Some(record) = &mut self.record {
            scored.iter().for_each(|(kv, scored)| record.note(*kv, *scored));
        }
    }

    fn forget_sampling(&mut self) {
        if let Some(record) = &mut self.record {
            record.release();
        }
    }

    fn draws(&self) -> bool {
        self.adapters.as_ref().is_some_and(Adapters::draws)
    }

    fn key_draws(&mut self, keys: &[u64]) {
        if self.draws() {
            self.keys = keys.to_vec();
        }
    }

    fn forward(&mut self, batch: &PackedBatch, train: bool) -> Result<Forward, EngineError> {
        self.forward_pass(batch, train)
    }

    fn backward(&mut self, upstream: Upstream<'_>) -> Result<(), EngineError> {
        self.backward_pass(upstream, &mut |_, _| ControlFlow::Continue(()))
    }

    fn gradient_order(&self) -> Vec<Range<usize>> {
        // Adapters are small: theirs are read at the end.
        if self.adapters.is_some() { Vec::new() } else { self.layout.backward_order() }
    }

    fn backward_in_order(&mut self, upstream: Upstream<'_>, done: Done<'_>) -> Result<(), EngineError> {
        let order = self.gradient_order();
        let len = self.layout.len();
        self.backward_pass(upstream, &mut |all, stage| match order.get(stage) {
            Some(range) => done(&mut all[..len], range.clone()),
            None => ControlFlow::Continue(()),
        })
    }

    fn zero_grad(&mut self) {
        self.training.zero(&self.cpu);
    }

    fn grad_norm(&mut self) -> Result<f64, EngineError> {
        Ok(self.training.norm(&self.cpu))
    }

    fn update(&mut self, optimizer: &AdamW, lr: f64, grad_scale: f64) -> Result<(), EngineError> {
        divided(self.training.partition(), "an update")?;
        self.update_partition(optimizer, lr, grad_scale, &mut |_| ControlFlow::Continue(()))
    }

    fn update_partition(
        &mut self,
        optimizer: &AdamW,
        lr: f64,
        grad_scale: f64,
        exchange: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let (cpu, layout, training) = (&self.cpu, &self.layout, &mut self.training);
        let mut change = |layout: &Layout, values: &mut [f32]| {
            training.update(cpu, layout, values, optimizer, lr, grad_scale)?;
            // What trains is one bucket: whether it is the last does not matter.
            let _ = exchange(&mut values[..layout.len()]);
            Ok::<_, EngineError>(())
        };
        match &mut self.adapters {
            None => self.weights.change(cpu, layout, |arena| change(layout, arena))?,
            Some(adapters) => {
                change(&adapters.layout, &mut adapters.values)?;
                adapters.merge(cpu, layout, &mut self.weights)?;
            }
        }
        self.forget_passes();
        Ok(())
    }

    fn updates(&self) -> u64 {
        self.training.updates
    }

    fn partition(&self) -> Partition {
        self.training.partition()
    }

    fn keep_partition(&mut self, part: Partition) -> Result<(), EngineError> {
        let (layout, training) = self.training();
        if training.partition() != part {
            divided(training.partition(), "another part")?;
            training.cut(layout, part);
        }
        Ok(())
    }

    fn take_partition(
        &mut self,
        part: Partition,
        updates: u64,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let (layout, training) = self.training();
        training.reset(part);
        training.updates = updates;
        if updates > 0 {
            let (first, second) = training.moments_mut(layout);
            // Whoever breaks off knows that it did.
            let _ = [first, second].into_iter().try_for_each(fill);
        }
        Ok(())
    }

    fn each_moment(&mut self, part: Partition, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        let (layout, training) = self.training();
        if training.partition() != part {
            divided(training.partition(), "another part")?;
        }
        if let Some(moments) = training.moments_of(layout, part) {
            // As above.
            let _ = moments.into_iter().try_for_each(visit);
        }
        Ok(())
    }

    fn optimizer_gather(
        &mut self,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        let layout = self.adapters.as_ref().map_or(&self.layout, |adapters| &adapters.layout);
        let (first, second) = self.training.gather(&self.cpu, layout, fill);
        Ok((first, second, self.training.updates))
    }

    fn each_gradient(&mut self, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        let (layout, training) = self.training();
        // The arena is one bucket: whether it is the last does not matter.
        let _ = visit(training.gradients_mut(layout));
        Ok(())
    }

    fn gradients(&self) -> Result<WeightSet, EngineError> {
        let layout = self.trained_layout();
        let unpack = |gradients| layout.unpack(&self.cpu, gradients);
        Ok(self.training.gradients().map_or_else(|| layout.zeros(), unpack))
    }

    fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        divided(self.training.partition(), "the export")?;
        let layout = self.trained_layout();
        let unpack = |arena| layout.unpack(&self.cpu, arena);
        let (first, second) = match self.training.moments() {
            Some((first, second)) => (unpack(first), unpack(second)),
            None => (layout.zeros(), layout.zeros()),
        };
        Ok((first, second, self.training.updates))
    }

    fn optimizer_import(&mut self, first: &WeightSet, second: &WeightSet, updates: u64) -> Result<(), EngineError> {
        let layout = self.adapters.as_ref().map_or(&self.layout, |adapters| &adapters.layout);
        for set in [first, second] {
            layout.check(set)?;
        }
        if self.training.partition() != Partition::WHOLE {
            self.training.reset(Partition::WHOLE);
        }
        let moments = self.training.moments_mut(layout);
        layout.pack(&self.cpu, first, moments.0);
        layout.pack(&self.cpu, second, moments.1);
        self.training.updates = updates;
        Ok(())
    }

    fn optimizer_reset(&mut self) -> Result<(), EngineError> {
        self.training.reset(Partition::WHOLE);
        Ok(())
    }
}
