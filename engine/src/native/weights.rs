//! The parameters: one f32 arena, and with bf16 the rounded matrices beside it, which is all that products read; where sampling
//! is to be in int8, those matrices as well.
//!
//! Invariant **W1**: after every change the rounded matrices are those of the arena. Export, digest and the optimizer know the
//! f32 values only, so that no rounding adds up over steps.
use super::layout::{Layout, Slot};
use super::quantized::Quantized;
use crate::EngineError;
use cohort_kernels::linear::{self, Matrix};
use cohort_kernels::{Buffer, Cpu, Format};
use cohort_model::WeightSet;
use std::ops::Range;

/// What of a decoder's matrices is kept.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kind {
    /// Products read bf16 copies.
    pub(super) halved: bool,
    /// Those of sampling read int8 copies.
    pub(super) quantized: bool,
    /// Nothing but what sampling reads.
    pub(super) sampling_only: bool,
}

/// All parameters of a decoder in the order of a [`Layout`].
#[derive(Debug)]
pub(super) struct Weights {
    format: Format,
    /// For sampling alone with bf16 or int8: only what passes read is ever touched. Of the arena that are the vectors, and in f32
    /// with int8 the embeddings too; of the halves beside int8 the embeddings.
    sampling_only: bool,
    /// Digest of the set that was imported, where the arena does not have it.
    imported: Option<u64>,
    arena: Buffer,
    /// Words of bf16 pairs; a matrix at half its place in the arena.
    halves: Buffer,
    /// What sampling multiplies with, where that is not what training does.
    quantized: Option<Quantized>,
}

impl Weights {
    /// In f32 or bf16, all zero.
    pub(super) fn zeroed(layout: &Layout, kind: Kind) -> Self {
        let halves = if kind.halved { Buffer::zeroed(layout.len() / 2) } else { Buffer::default() };
        Self {
            format: if kind.halved { Format::Bf16 } else { Format::F32 },
            sampling_only: kind.sampling_only && (kind.halved || kind.quantized),
            imported: None,
            arena: Buffer::zeroed(layout.len()),
            halves,
            quantized: kind.quantized.then(|| Quantized::zeroed(layout)),
        }
    }

    /// What they are.
    pub(super) fn kind(&self) -> Kind {
        let Self { format, sampling_only, quantized, .. } = self;
        Kind { halved: *format == Format::Bf16, quantized: quantized.is_some(), sampling_only: *sampling_only }
    }

    /// What passes that sample multiply with, where that is not [`Weights::matrix`].
    pub(super) fn for_sampling(&self) -> Option<&Quantized> {
        self.quantized.as_ref()
    }

    /// As [`Weights::for_sampling`] for passes that score: the learner's own matrices, wherever they are kept.
    pub(super) fn for_scoring(&self) -> Option<&Quantized> {
        self.quantized.as_ref().filter(|_| self.sampling_only)
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// The f32 values of a vector.
    pub(super) fn vector(&self, range: Range<usize>) -> &[f32] {
        &self.arena[range]
    }

    /// A matrix with `inner` columns.
    pub(super) fn matrix(&self, range: Range<usize>, inner: usize) -> Matrix<'_> {
        if self.format == Format::F32 {
            return Matrix::f32(&self.arena[range]);
        }
        let words: &[u32] = bytemuck::cast_slice(&self.halves);
        Matrix::bf16(&words[half(&range, inner)])
    }

    /// Takes a checked set, of which the caller may know the digest.
    pub(super) fn import(&mut self, cpu: &Cpu, layout: &Layout, set: &WeightSet, digest: Option<u64>) {
        if !self.sampling_only {
            layout.pack(cpu, set, &mut self.arena);
            self.round(cpu, layout);
            return;
        }
        self.imported = digest.or_else(|| Some(set.digest()));
        let mut panels = Buffer::default();
        for slot in layout.slots() {
            let values = layout.tensor(set, slot);
            match slot.matrix() {
                Some((out, inner)) => {
                    panels.reserve(slot.range.len());
                    let panels = &mut panels[..slot.range.len()];
                    linear::pack(cpu, values, out, inner, panels);
                    self.keep(cpu, layout, slot, inner, panels);
                }
                None => self.arena[slot.range.clone()].copy_from_slice(values),
            }
        }
    }

    /// What sampling reads of a matrix.
    fn keep(&mut self, cpu: &Cpu, layout: &Layout, slot: &Slot, inner: usize, panels: &[f32]) {
        if let Some(quantized) = &mut self.quantized {
            quantized.take(cpu, slot, panels);
            if !layout.is_looked_up(slot) {
                return;
            }
        }
        match self.format {
            Format::Bf16 => halve(cpu, panels, slot.range.clone(), inner, &mut self.halves),
            Format::F32 | Format::Int8 => self.arena[slot.range.clone()].copy_from_slice(panels),
        }
    }

    /// The f32 values of everything.
    ///
    /// # Errors
    /// [`EngineError::Input`] where only rounded matrices are kept.
    pub(super) fn arena(&self) -> Result<&[f32], EngineError> {
        self.refuse_sampling_only()?;
        Ok(&self.arena)
    }

    /// The digest of the canonical f32 form where the arena does not have it.
    pub(super) fn imported(&self) -> Option<u64> {
        self.imported
    }

    /// Changes f32 values; rounds afterwards, also when the change failed.
    ///
    /// # Errors
    /// Those of `change`, and as [`Weights::arena`].
    pub(super) fn change<R>(
        &mut self,
        cpu: &Cpu,
        layout: &Layout,
        change: impl FnOnce(&mut [f32]) -> Result<R, EngineError>,
    ) -> Result<R, EngineError> {
        self.refuse_sampling_only()?;
        let result = change(&mut self.arena);
        self.round(cpu, layout);
        result
    }

    fn refuse_sampling_only(&self) -> Result<(), EngineError> {
        if self.sampling_only {
            let what = "this engine was opened for sampling alone and keeps its matrices in bf16 or int8: train, export and \
                        compare on another";
            return Err(EngineError::Input(what.into()));
        }
        Ok(())
    }

    fn round(&mut self, cpu: &Cpu, layout: &Layout) {
        for slot in layout.slots() {
            let (Some((_, inner)), panels) = (slot.matrix(), &self.arena[slot.range.clone()]) else { continue };
            if self.format == Format::Bf16 {
                halve(cpu, panels, slot.range.clone(), inner, &mut self.halves);
            }
            if let Some(quantized) = &mut self.quantized {
                quantized.take(cpu, slot, panels);
            }
        }
    }
}

/// Where the words of a matrix lie whose f32 panels lie at `range`.
fn half(range: &Range<usize>, inner: usize) -> Range<usize> {
    let start = range.start / 2;
    start..start + range.len() / inner * inner.div_ceil(2)
}

fn halve(cpu: &Cpu, panels: &[f32], range: Range<usize>, inner: usize, halves: &mut Buffer) {
    let words: &mut [u32] = bytemuck::cast_slice_mut(halves);
    linear::halve(cpu, panels, inner, &mut words[half(&range, inner)]);
}
