//! The parameters: one f32 arena, and with bf16 the rounded matrices beside it, which is all that products read.
//!
//! Invariant **W1**: after every change the rounded matrices are those of the arena. Export, digest and the optimizer know the
//! f32 values only, so that no rounding adds up over steps.
use super::layout::Layout;
use crate::EngineError;
use cohort_kernels::linear::{self, Matrix};
use cohort_kernels::{Buffer, Cpu, Format};
use cohort_model::WeightSet;
use std::ops::Range;

/// All parameters of a decoder in the order of a [`Layout`].
#[derive(Debug)]
pub(super) struct Weights {
    format: Format,
    /// For sampling alone with bf16: of the arena only the vectors are ever touched, so that matrices cost half the memory.
    sampling_only: bool,
    /// Digest of the set that was imported, where the arena does not have it.
    imported: Option<u64>,
    arena: Buffer,
    /// Words of bf16 pairs; a matrix at half its place in the arena.
    halves: Buffer,
}

impl Weights {
    pub(super) fn zeroed(layout: &Layout, format: Format, sampling_only: bool) -> Self {
        let halves = match format {
            Format::F32 => Buffer::default(),
            Format::Bf16 => Buffer::zeroed(layout.len() / 2),
        };
        let sampling_only = sampling_only && format == Format::Bf16;
        Self { format, sampling_only, imported: None, arena: Buffer::zeroed(layout.len()), halves }
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
        match self.format {
            Format::F32 => Matrix::f32(&self.arena[range]),
            Format::Bf16 => {
                let words: &[u32] = bytemuck::cast_slice(&self.halves);
                Matrix::bf16(&words[half(&range, inner)])
            }
        }
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
                    halve(cpu, panels, slot.range.clone(), inner, &mut self.halves);
                }
                None => self.arena[slot.range.clone()].copy_from_slice(values),
            }
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
            let what =
                "this engine was opened for sampling alone and keeps its matrices in bf16: train, export and compare on another";
            return Err(EngineError::Input(what.into()));
        }
        Ok(())
    }

    fn round(&mut self, cpu: &Cpu, layout: &Layout) {
        if self.format == Format::F32 {
            return;
        }
        for slot in layout.slots() {
            if let Some((_, inner)) = slot.matrix() {
                halve(cpu, &self.arena[slot.range.clone()], slot.range.clone(), inner, &mut self.halves);
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
