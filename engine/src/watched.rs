//! A backend that remembers whether its weights were touched, so that stale keys and values are never decoded from.
use crate::parts::Visit;
use crate::{AdamW, Backend, Done, EngineError, Extend, Forward, KvId, PackedBatch, Partition, Scored, Upstream};
use cohort_model::spec::TensorSpec;
use cohort_model::{DecoderSpec, WeightSet};
use std::ops::{ControlFlow, Range};

/// Passes every call on and notes those that may change weights.
pub(crate) struct Watched<'a> {
    inner: &'a mut dyn Backend,
    changed: bool,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(inner: &'a mut dyn Backend) -> Self {
        Self { inner, changed: false }
    }

    pub(crate) fn changed(&self) -> bool {
        self.changed
    }
}

impl Backend for Watched<'_> {
    fn spec(&self) -> &DecoderSpec {
        self.inner.spec()
    }
    fn numerics(&self) -> String {
        self.inner.numerics()
    }
    fn is_exact(&self) -> bool {
        self.inner.is_exact()
    }
    fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.inner.each(tasks, task);
    }
    fn import(&mut self, weights: &WeightSet) -> Result<(), EngineError> {
        self.changed = true;
        self.inner.import(weights)
    }
    fn import_named(&mut self, weights: &WeightSet, digest: u64) -> Result<(), EngineError> {
        self.changed = true;
        self.inner.import_named(weights, digest)
    }
    fn tensors(&self) -> Result<Vec<TensorSpec>, EngineError> {
        self.inner.tensors()
    }
    fn each_part(&self, visit: Visit<'_>) -> Result<(), EngineError> {
        self.inner.each_part(visit)
    }
    fn export(&self) -> Result<WeightSet, EngineError> {
        self.inner.export()
    }
    fn digest(&self) -> Result<u64, EngineError> {
        self.inner.digest()
    }
    fn kv_open(&mut self) -> Result<KvId, EngineError> {
        self.inner.kv_open()
    }
    fn kv_fork(&mut self, from: KvId, len: usize) -> Result<KvId, EngineError> {
        self.inner.kv_fork(from, len)
    }

    fn kv_len(&self, kv: KvId) -> usize {
        self.inner.kv_len(kv)
    }
    fn kv_truncate(&mut self, kv: KvId, len: usize) {
        self.inner.kv_truncate(kv, len);
    }
    fn kv_close(&mut self, kv: KvId) {
        self.inner.kv_close(kv);
    }
    fn extend(&mut self, work: &[Extend<'_>], logits: &mut [f32]) -> Result<(), EngineError> {
        self.inner.extend(work, logits)
    }
    fn note_scored(&mut self, scored: &[(KvId, Scored)]) {
        self.inner.note_scored(scored);
    }
    fn forget_sampling(&mut self) {
        self.inner.forget_sampling();
    }
    fn draws(&self) -> bool {
        self.inner.draws()
    }
    fn key_draws(&mut self, keys: &[u64]) {
        self.inner.key_draws(keys);
    }
    fn forward(&mut self, batch: &PackedBatch, train: bool) -> Result<Forward, EngineError> {
        self.inner.forward(batch, train)
    }
    fn backward(&mut self, upstream: Upstream<'_>) -> Result<(), EngineError> {
        self.inner.backward(upstream)
    }
    fn gradient_order(&self) -> Vec<Range<usize>> {
        self.inner.gradient_order()
    }
    fn backward_in_order(&mut self, upstream: Upstream<'_>, done: Done<'_>) -> Result<(), EngineError> {
        self.inner.backward_in_order(upstream, done)
    }
    fn zero_grad(&mut self) {
        self.inner.zero_grad();
    }
    fn grad_norm(&mut self) -> Result<f64, EngineError> {
        self.inner.grad_norm()
    }
    fn update(&mut self, optimizer: &AdamW, lr: f64, grad_scale: f64) -> Result<(), EngineError> {
        self.changed = true;
        self.inner.update(optimizer, lr, grad_scale)
    }
    fn each_gradient(&mut self, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        self.inner.each_gradient(visit)
    }
    fn gradients(&self) -> Result<WeightSet, EngineError> {
        self.inner.gradients()
    }
    fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        self.inner.optimizer_export()
    }
    fn optimizer_import(&mut self, first: &WeightSet, second: &WeightSet, updates: u64) -> Result<(), EngineError> {
        self.inner.optimizer_import(first, second, updates)
    }
    fn optimizer_reset(&mut self) -> Result<(), EngineError> {
        self.inner.optimizer_reset()
    }
    fn updates(&self) -> u64 {
        self.inner.updates()
    }
    fn partition(&self) -> Partition {
        self.inner.partition()
    }
    fn keep_partition(&mut self, part: Partition) -> Result<(), EngineError> {
        self.inner.keep_partition(part)
    }
    fn take_partition(
        &mut self,
        part: Partition,
        updates: u64,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.inner.take_partition(part, updates, fill)
    }
    fn each_moment(&mut self, part: Partition, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        self.inner.each_moment(part, visit)
    }
    fn optimizer_gather(
        &mut self,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        self.inner.optimizer_gather(fill)
    }
    fn update_partition(
        &mut self,
        optimizer: &AdamW,
        lr: f64,
        grad_scale: f64,
        exchange: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.changed = true;
        self.inner.update_partition(optimizer, lr, grad_scale, exchange)
    }
}
