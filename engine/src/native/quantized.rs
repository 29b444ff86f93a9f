//! int8 copies of the matrices that are multiplied with, for passes whose log-probs nobody takes for the learner's.
//!
//! Every projection and the output projection are here. Looked-up embeddings, norms and biases are read where they are: they are
//! added, not summed over, and their bytes are few. The output projection, with SmolLM2 a fifth of all bytes, costs about as
//! much accuracy as its share ([ADR 8](../../../docs/adr/0008-int8-rollouts.md)).
use super::layout::{Layout, Slot};
use cohort_kernels::linear::{self, Matrix, packed_len};
use cohort_kernels::{Buffer, Cpu, Format};
use std::collections::HashMap;
use std::ops::Range;

/// The copies.
#[derive(Debug)]
pub(super) struct Quantized {
    words: Buffer,
    /// Words of each matrix, by where it begins in the arena.
    places: HashMap<usize, Range<usize>>,
}

impl Quantized {
    /// Room for a decoder's.
    pub(super) fn zeroed(layout: &Layout) -> Self {
        let mut len = 0;
        let mut places = HashMap::new();
        for slot in layout.slots().iter().filter(|slot| layout.is_multiplied(slot)) {
            let Some((out, inner)) = slot.matrix() else { continue };
            let size = packed_len(out, Format::Int8.words(inner));
            places.insert(slot.range.start, len..len + size);
            len += size;
        }
        Self { words: Buffer::zeroed(len), places }
    }

    /// The copy of the matrix that lies there in the arena.
    pub(super) fn matrix(&self, range: &Range<usize>) -> Matrix<'_> {
        let words: &[u32] = bytemuck::cast_slice(&self.words);
        Matrix::int8(&words[self.place(range.start)])
    }

    /// Makes a slot's copy anew, where it has one, from its f32 panels.
    pub(super) fn take(&mut self, cpu: &Cpu, slot: &Slot, panels: &[f32]) {
        let place = self.place(slot.range.start);
        if let Some((_, inner)) = slot.matrix().filter(|_| !place.is_empty()) {
            let words: &mut [u32] = bytemuck::cast_slice_mut(&mut self.words);
            linear::quantize(cpu, panels, inner, &mut words[place]);
        }
    }

    fn place(&self, start: usize) -> Range<usize> {
        self.places.get(&start).map_or(0..0, Clone::clone)
    }
}
