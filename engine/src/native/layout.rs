//! Where each tensor of a decoder lies in the packed arena, and the way from and to the canonical layout.
//!
//! Parameters, gradients and both moments share this layout: matrices in panels, vectors as they are, every tensor at a
//! multiple of 32 values, with room for an even number of columns, so that the bf16 pairs of a matrix find place at half its
//! place ([`Weights`](super::weights::Weights)). Padding is zero and stays zero under training.
use crate::EngineError;
use crate::parts::{Part as Shown, Visit};
use cohort_kernels::{Cpu, linear};
use cohort_model::spec::TensorSpec;
use cohort_model::{DecoderSpec, Tensor, WeightSet};
use std::collections::HashMap;
use std::ops::Range;

/// Tensors of a block; a family has some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    InputNorm,
    InputNormBias,
    Query,
    QueryBias,
    QueryNorm,
    Key,
    KeyBias,
    KeyNorm,
    Value,
    ValueBias,
    Output,
    OutputBias,
    MlpNorm,
    MlpNormBias,
    Gate,
    Up,
    UpBias,
    Down,
    DownBias,
}

/// Parts in the order of their numbers, and their canonical names.
const PARTS: [(Part, &str); 19] = [
    (Part::InputNorm, "input_layernorm.weight"),
    (Part::InputNormBias, "input_layernorm.bias"),
    (Part::Query, "self_attn.q_proj.weight"),
    (Part::QueryBias, "self_attn.q_proj.bias"),
    (Part::QueryNorm, "self_attn.q_norm.weight"),
    (Part::Key, "self_attn.k_proj.weight"),
    (Part::KeyBias, "self_attn.k_proj.bias"),
    (Part::KeyNorm, "self_attn.k_norm.weight"),
    (Part::Value, "self_attn.v_proj.weight"),
    (Part::ValueBias, "self_attn.v_proj.bias"),
    (Part::Output, "self_attn.o_proj.weight"),
    (Part::OutputBias, "self_attn.o_proj.bias"),
    (Part::MlpNorm, "post_attention_layernorm.weight"),
    (Part::MlpNormBias, "post_attention_layernorm.bias"),
    (Part::Gate, "mlp.gate_proj.weight"),
    (Part::Up, "mlp.up_proj.weight"),
    (Part::UpBias, "mlp.up_proj.bias"),
    (Part::Down, "mlp.down_proj.weight"),
    (Part::DownBias, "mlp.down_proj.bias"),
];

/// Where the parts of one block lie; those that the family lacks are empty.
type Block = [Range<usize>; PARTS.len()];

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
    blocks: Vec<Block>,
    embedding: Range<usize>,
    positions: Range<usize>,
    final_norm: Range<usize>,
    final_norm_bias: Range<usize>,
    /// The embedding when tied.
    head: Range<usize>,
    len: usize,
}

impl Layout {
    /// The parameters of a decoder.
    pub(super) fn new(spec: &DecoderSpec) -> Self {
        let plain = Self::of(spec.tensors());
        let ranges: HashMap<&str, &Range<usize>> = plain.slots.iter().map(|slot| (slot.name.as_str(), &slot.range)).collect();
        let range = |name: &str| ranges.get(name).map_or(0..0, |range| (*range).clone());
        let block = |layer| PARTS.map(|(_, name)| range(&format!("model.layers.{layer}.{name}")));
        let embedding = range("model.embed_tokens.weight");
        Self {
            blocks: (0..spec.layers).map(block).collect(),
            positions: range("model.embed_positions.weight"),
            final_norm: range("model.norm.weight"),
            final_norm_bias: range("model.norm.bias"),
            head: if spec.tied_embeddings { embedding.clone() } else { range("lm_head.weight") },
            embedding,
            len: plain.len,
            slots: plain.slots,
        }
    }

    /// Any tensors, one after the other.
    pub(super) fn of(tensors: Vec<TensorSpec>) -> Self {
        let mut len = 0;
        let place = |tensor: TensorSpec| {
            let (size, room) = match tensor.shape[..] {
                [out, inner] => (linear::packed_len(out, inner), linear::packed_len(out, inner.next_multiple_of(2))),
                _ => (tensor.shape.iter().product(), tensor.shape.iter().product()),
            };
            let range = len..len + size;
            len = (len + room).next_multiple_of(32);
            Slot { name: tensor.name, shape: tensor.shape, range }
        };
        let slots = tensors.into_iter().map(place).collect();
        Self {
            slots,
            blocks: Vec::new(),
            embedding: 0..0,
            positions: 0..0,
            final_norm: 0..0,
            final_norm_bias: 0..0,
            head: 0..0,
            len,
        }
    }

    /// Values of an arena.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn embedding(&self) -> Range<usize> {
        self.embedding.clone()
    }

    /// Learned positions; empty where there are none.
    pub(super) fn positions(&self) -> Range<usize> {
        self.positions.clone()
    }

    /// A part of a block; empty where the family lacks it.
    pub(super) fn block(&self, layer: usize, part: Part) -> Range<usize> {
        self.blocks[layer][part as usize].clone()
    }

    /// Ranges in the order in which a backward pass is done with them, side by side all of an arena: the last norm and a head
    /// of its own, the blocks from the last one on, what rows are looked up in.
    pub(super) fn backward_order(&self) -> Vec<Range<usize>> {
        let mut starts: Vec<(usize, usize)> = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let block = self.blocks.iter().position(|block| block.contains(&slot.range));
            let stage = match block {
                Some(layer) => self.blocks.len() - layer,
                None if self.is_looked_up(slot) => self.blocks.len() + 1,
                None => 0,
            };
            // What lies between two tensors goes with the first.
            if starts.last().is_none_or(|(known, _)| *known != stage) {
                starts.push((stage, slot.range.start));
            }
        }
        let ends: Vec<usize> = starts.iter().skip(1).map(|(_, start)| *start).chain([self.len]).collect();
        let mut order: Vec<_> = starts.into_iter().zip(ends).map(|((stage, start), end)| (stage, start..end)).collect();
        order.sort_by_key(|(stage, _)| *stage);
        order.into_iter().map(|(_, range)| range).collect()
    }

    pub(super) fn final_norm(&self) -> Range<usize> {
        self.final_norm.clone()
    }

    /// Empty where the family's norms have none.
    pub(super) fn final_norm_bias(&self) -> Range<usize> {
        self.final_norm_bias.clone()
    }

    /// The output projection: the embedding when tied.
    pub(super) fn head(&self) -> Range<usize> {
        self.head.clone()
    }

    /// Whether products read this matrix: learned positions, and an embedding that is not the head as well, are only looked up.
    pub(super) fn is_multiplied(&self, slot: &Slot) -> bool {
        slot.matrix().is_some() && (slot.range == self.head || !self.is_looked_up(slot))
    }

    /// Whether rows of this matrix are looked up.
    pub(super) fn is_looked_up(&self, slot: &Slot) -> bool {
        slot.range == self.embedding || slot.range == self.positions
    }

    /// Refuses a set of other tensors or with values that are not finite.
    pub(super) fn check(&self, set: &WeightSet) -> Result<(), EngineError> {
        let spec = |slot: &Slot| TensorSpec { name: slot.name.clone(), shape: slot.shape.clone() };
        let specs: Vec<TensorSpec> = self.slots.iter().map(spec).collect();
        set.fits(&specs).map_err(|error| EngineError::Input(error.to_string()))?;
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

    /// Shows the canonical form of an arena in parts, tensors side by side.
    pub(super) fn each_part(&self, cpu: &Cpu, arena: &[f32], visit: Visit<'_>) {
        cpu.pool().run(self.slots.len(), |index| {
            let Slot { name, shape, range } = &self.slots[index];
            let show = |start, values: &[f32]| visit(Shown { name, shape, start, values });
            match self.slots[index].matrix() {
                Some((out, inner)) => {
                    linear::unpack_rows(cpu.path(), &arena[range.clone()], out, inner, |row, rows| show(row * inner, rows));
                }
                None => show(0, &arena[range.clone()]),
            }
        });
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

#[cfg(test)]
mod tests {
    use super::{Layout, PARTS, Part};
    use cohort_model::ModelFiles;

    #[test]
    fn every_tensor_of_every_family_has_one_place() {
        assert!(PARTS.iter().enumerate().all(|(index, (part, _))| *part as usize == index));
        for family in cohort_model::Family::ALL {
            for tied_embeddings in [true, false] {
                let spec = ModelFiles::open("random://tiny?seed=0").unwrap().spec;
                let spec_layers = spec.layers;
                let layout = Layout::new(&cohort_model::DecoderSpec { family, tied_embeddings, ..spec });
                let ends = [layout.embedding(), layout.positions(), layout.final_norm(), layout.final_norm_bias(), layout.head()];
                let mut named: Vec<_> = layout.blocks.iter().flatten().chain(&ends).filter(|range| !range.is_empty()).collect();
                named.sort_by_key(|range| range.start);
                named.dedup();
                let slots: Vec<_> = layout.slots.iter().map(|slot| &slot.range).collect();
                assert_eq!(named, slots, "{family:?}");
                assert!(slots.windows(2).all(|pair| pair[0].end <= pair[1].start && pair[1].start % 16 == 0));
                let order = layout.backward_order();
                assert_eq!(order.len(), spec_layers + 2, "{family:?}: {order:?}");
                let mut sorted = order.clone();
                sorted.sort_by_key(|range| range.start);
                assert_eq!((sorted[0].start, sorted[order.len() - 1].end), (0, layout.len()));
                assert!(sorted.windows(2).all(|pair| pair[0].end == pair[1].start));
                assert!(
                    order[0].contains(&layout.final_norm().start) && order[0].contains(&layout.head().start) != tied_embeddings
                );
                assert!(order[1].contains(&layout.block(spec_layers - 1, Part::Query).start));
                assert!(order[order.len() - 1].contains(&layout.embedding().start));
            }
        }
    }
}
