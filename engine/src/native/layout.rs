//! Where each tensor of a decoder lies in the packed arena, and the way from and to the canonical layout.
//!
//! Parameters, gradients and both moments share this layout: matrices in panels, vectors as they are, every tensor at a
//! multiple of 32 values, with room for an even number of columns, so that the bf16 pairs of a matrix find place at half its
//! place ([`Weights`](super::weights::Weights)). Padding is zero and stays zero under training.
use crate::EngineError;
use cohort_kernels::{Cpu, linear};
use cohort_model::{DecoderSpec, FastDigest, Tensor, WeightSet};
use std::ops::Range;

/// Tensors of a block, in the order of [`DecoderSpec::tensors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    InputNorm,
    Query,
    Key,
    Value,
    Output,
    MlpNorm,
    Gate,
    Up,
    Down,
}

const PARTS: usize = 9;

/// One tensor's place.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) range: Range<usize>,
}

impl Slot {
    /// `[out, in]` of a matrix.
    pub(super) fn matrix(&self) -> Option<(usize, usize)> {
        match self.shape[..] {
            [out, inner] => Some((out, inner)),
            _ => None,
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The canonical values of this tensor in an arena.
    fn unpack(&self, cpu: &Cpu, arena: &[f32], data: &mut [f32]) {
        let values = &arena[self.range.clone()];
        match self.matrix() {
            Some((out, inner)) => linear::unpack(cpu, values, out, inner, data),
            None => data.copy_from_slice(&values[..data.len()]),
        }
    }

    /// Where the canonical element `index` lies.
    fn place(&self, index: usize) -> usize {
        let packed = match self.matrix() {
            Some((_, inner)) => linear::packed_index(index / inner, index % inner, inner),
            None => index,
        };
        self.range.start + packed
    }
}

/// All tensors of a decoder.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    slots: Vec<Slot>,
    layers: usize,
    tied: bool,
    len: usize,
}

impl Layout {
    pub(super) fn new(spec: &DecoderSpec) -> Self {
        let mut len = 0;
        let place = |tensor: cohort_model::spec::TensorSpec| {
            let (size, room) = match tensor.shape[..] {
                [out, inner] => (linear::packed_len(out, inner), linear::packed_len(out, inner.next_multiple_of(2))),
                _ => (tensor.shape.iter().product(), tensor.shape.iter().product()),
            };
            let range = len..len + size;
            len = (len + room).next_multiple_of(32);
            Slot { name: tensor.name, shape: tensor.shape, range }
        };
        let slots = spec.tensors().into_iter().map(place).collect();
        Self { slots, layers: spec.layers, tied: spec.tied_embeddings, len }
    }

    /// Values of an arena.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn embedding(&self) -> Range<usize> {
        self.slots[0].range.clone()
    }

    pub(super) fn block(&self, layer: usize, part: Part) -> Range<usize> {
        self.slots[1 + layer * PARTS + part as usize].range.clone()
    }

    pub(super) fn final_norm(&self) -> Range<usize> {
        self.slots[1 + self.layers * PARTS].range.clone()
    }

    /// The output projection: the embedding when tied.
    pub(super) fn head(&self) -> Range<usize> {
        if self.tied { self.embedding() } else { self.slots[2 + self.layers * PARTS].range.clone() }
    }

    /// Refuses a set of other tensors or with values that are not finite.
    pub(super) fn check(&self, spec: &DecoderSpec, set: &WeightSet) -> Result<(), EngineError> {
        set.check(spec).map_err(|error| EngineError::Input(error.to_string()))?;
        for slot in &self.slots {
            if let Some(bad) = self.tensor(set, slot).iter().position(|value| !value.is_finite()) {
                return Err(EngineError::NonFinite(format!(
                    "tensor {} holds a value that is not finite at index {bad}; the file or the step that made it is broken",
                    slot.name
                )));
            }
        }
        Ok(())
    }

    /// Writes a checked set into an arena.
    pub(super) fn pack(&self, cpu: &Cpu, set: &WeightSet, arena: &mut [f32]) {
        for slot in &self.slots {
            let (values, target) = (self.tensor(set, slot), &mut arena[slot.range.clone()]);
            match slot.matrix() {
                Some((out, inner)) => linear::pack(cpu, values, out, inner, target),
                None => target.copy_from_slice(values),
            }
        }
    }

    /// The values of a slot; empty when a set that was not checked lacks it.
    pub(super) fn tensor<'a>(&self, set: &'a WeightSet, slot: &Slot) -> &'a [f32] {
        set.0.get(&slot.name).map_or(&[], |tensor| &tensor.data)
    }

    /// The canonical form of an arena.
    pub(super) fn unpack(&self, cpu: &Cpu, arena: &[f32]) -> WeightSet {
        let tensor = |slot: &Slot| {
            let mut data = vec![0.0; slot.len()];
            slot.unpack(cpu, arena, &mut data);
            (slot.name.clone(), Tensor { shape: slot.shape.clone(), data })
        };
        WeightSet(self.slots.iter().map(tensor).collect())
    }

    /// The digest of the canonical form of an arena, of which one tensor at a time is made.
    pub(super) fn digest(&self, cpu: &Cpu, arena: &[f32]) -> u64 {
        let mut slots: Vec<&Slot> = self.slots.iter().collect();
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        let mut digest = FastDigest::new();
        let mut buffer = Vec::new();
        for slot in slots {
            buffer.resize(slot.len().max(buffer.len()), 0.0);
            let data = &mut buffer[..slot.len()];
            slot.unpack(cpu, arena, data);
            digest.tensor(&slot.name, &slot.shape, data);
        }
        digest.finish()
    }

    /// A set of zeros, for an arena that was never needed.
    pub(super) fn zeros(&self) -> WeightSet {
        let tensor = |slot: &Slot| (slot.name.clone(), Tensor { shape: slot.shape.clone(), data: vec![0.0; slot.len()] });
        WeightSet(self.slots.iter().map(tensor).collect())
    }

    /// Where a tensor's canonical element lies in an arena.
    pub(super) fn locate(&self, name: &str, index: usize) -> Result<usize, EngineError> {
        let slot = self.slots.iter().find(|slot| slot.name == name);
        let slot = slot.ok_or_else(|| EngineError::Input(format!("tensor {name} is not part of this architecture")))?;
        if index >= slot.len() {
            return Err(EngineError::Input(format!("element {index} of tensor {name}, which has {}", slot.len())));
        }
        Ok(slot.place(index))
    }
}
