//! How an engine is made: for what, in which formats, with what it keeps.
use super::NativeEngine;
use super::block::{self, Model};
use super::kv::KvStore;
use super::layout::Layout;
use super::lora::Adapters;
use super::optimizer::Training;
use super::record::Record;
use super::weights::{Kind, Weights};
use super::workspace::{BackwardSpace, Kept, Workspace};
use crate::{Backend, EngineError, input};
use cohort_kernels::rope::RopeTable;
use cohort_kernels::{Cpu, Path};
use cohort_model::{DecoderSpec, DtypeKind, Lora, Quantization, WeightSet};

/// Priority of the compute threads below the control threads.
const NICE: i32 = 5;

impl NativeEngine {
    /// All weights zero until [`Backend::import`]. `threads` 0 takes all cores; `kv_budget_bytes` bounds the key/value
    /// pages of all sequences together.
    ///
    /// # Errors
    /// [`EngineError::Input`] when the architecture's numbers do not fit together.
    pub fn new(spec: DecoderSpec, threads: usize, kv_budget_bytes: usize) -> Result<Self, EngineError> {
        Self::with_path(spec, Path::detect(), threads, kv_budget_bytes)
    }

    /// As [`NativeEngine::new`] on a given instruction set: the bits are the same on all of them.
    ///
    /// # Errors
    /// As [`NativeEngine::new`].
    pub fn with_path(spec: DecoderSpec, path: Path, threads: usize, kv_budget_bytes: usize) -> Result<Self, EngineError> {
        input::spec(&spec)?;
        let layout = Layout::new(&spec);
        Ok(Self {
            cpu: Cpu::with_path(path, threads, NICE),
            weights: Weights::zeroed(&layout, Kind::default()),
            rope: RopeTable::new(spec.head_dim, spec.rope_theta),
            kv: KvStore::new(block::heads(&spec), spec.layers, kv_budget_bytes),
            layout,
            spec,
            workspace: Workspace::default(),
            kept: Kept::default(),
            record: None,
            recalled: Kept::default(),
            backward: BackwardSpace::default(),
            pending: None,
            training: Training::default(),
            adapters: None,
            keys: Vec::new(),
        })
    }

    /// The same engine with matrix products of this kind, on f32 parameters; weights are zero again until [`Backend::import`].
    #[must_use]
    pub fn of(self, dtype: DtypeKind) -> Self {
        self.keeping(|kind| Kind { halved: dtype == DtypeKind::Bf16, ..kind })
    }

    /// The same engine whose sampling is quantized or not; weights are zero again until [`Backend::import`].
    #[must_use]
    pub fn sampling(self, quantization: Quantization) -> Self {
        self.keeping(|kind| Kind { quantized: quantization == Quantization::Int8, ..kind })
    }

    fn keeping(self, change: impl FnOnce(Kind) -> Kind) -> Self {
        let weights = Weights::zeroed(&self.layout, change(self.weights.kind()));
        let record = self.record.filter(|_| !weights.kind().quantized);
        Self { weights, record, pending: None, ..self }
    }

    /// The same engine with adapters to train beside frozen parameters: from now on it imports, exports, digests and updates
    /// adapters only. They are zero until [`Backend::import`].
    ///
    /// # Errors
    /// [`EngineError::Input`] and [`EngineError::NonFinite`] as importing `frozen` has them, and of an engine
    /// [`for_sampling`](Self::for_sampling) alone.
    pub fn adapted(mut self, lora: &Lora, frozen: &WeightSet) -> Result<Self, EngineError> {
        self.layout.check(frozen)?;
        self.weights.import(&self.cpu, &self.layout, frozen, None);
        let adapters = Adapters::new(lora, &self.spec, &self.layout, self.weights.arena()?);
        Ok(Self { adapters: Some(adapters), pending: None, ..self })
    }

    /// An engine that keeps its matrices only as sampling reads them, in bf16 for half the memory, in int8 for a bit more than a
    /// quarter (embeddings apart): it samples and scores, and refuses to train or to export. No change in f32.
    #[must_use]
    pub fn for_sampling(self) -> Self {
        self.keeping(|kind| Kind { sampling_only: true, ..kind })
    }

    /// The same engine that keeps, for the backward pass, only what goes into each block and computes the rest again: less
    /// memory and another forward pass, the same bits.
    #[must_use]
    pub fn recomputing(mut self, recompute: bool) -> Self {
        self.kept.one_block = recompute;
        self
    }

    /// The same engine that keeps what sampling computes, as far as so many bytes go: a training pass whose rows are all there
    /// does not compute its forward pass, and has the same bits. Nothing where sampling is in int8, or the bytes are 0.
    #[must_use]
    pub fn recording(mut self, budget_bytes: usize) -> Self {
        let Self { cpu, spec, layout, weights, rope, adapters, .. } = &self;
        let model = Model { cpu, spec, layout, weights, quantized: None, rope, adapters: adapters.as_ref() };
        let mut row = Kept::default();
        row.reserve(model, 1, 1, true);
        let block = row.block(model, 0, 1, true).parts().map(|part| part.len()).iter().sum();
        let wanted = budget_bytes > 0 && self.is_exact();
        self.record = wanted.then(|| Record::new(self.spec.layers, block, self.spec.hidden, budget_bytes));
        self.recalled.one_block = true;
        self
    }
}
