//! Low-rank adapters: beside frozen parameters, A and B of some projections are what is trained.
//!
//! Invariants
//! - **L1** the arena of parameters always holds the merged matrices `W + s B A`, in the one order of operations of
//!   [`cohort_kernels::lora`]. Sampler and learner compute with them as with any others, so that an adapter beside its
//!   frozen model and the merged model give equal bits.
//! - **L2** only adapters have gradients, moments and a name: they are what is imported, exported and digested.
use super::block::{Batch, Model};
use super::layout::{Layout, Part};
use super::weights::Weights;
use crate::EngineError;
use cohort_kernels::dropout::{self, Drops};
use cohort_kernels::linear::{self, Matrix, Output, Projection, RowPacked};
use cohort_kernels::lora::{Product, merge};
use cohort_kernels::{Buffer, Cpu, Format};
use cohort_model::lora::Target;
use cohort_model::{DecoderSpec, Lora, WeightSet};
use std::collections::HashMap;
use std::ops::Range;

/// The adapters of an engine and the frozen matrices below them.
#[derive(Debug)]
pub(super) struct Adapters {
    /// Where A and B lie, packed as the parameters are.
    pub(super) layout: Layout,
    pub(super) values: Buffer,
    rank: usize,
    scale: f32,
    /// Probability that an input is dropped in a training pass.
    dropout: f32,
    /// The frozen matrices that have adapters, packed, one after the other.
    frozen: Buffer,
    pairs: Vec<Pair>,
    index: HashMap<(usize, Part), usize>,
}

/// One matrix's adapters.
#[derive(Debug, Clone)]
struct Pair {
    layer: usize,
    part: Part,
    /// `[out, in]` of the matrix.
    shape: (usize, usize),
    /// Its frozen values among those of all.
    frozen: Range<usize>,
    a: Range<usize>,
    b: Range<usize>,
}

const fn part(target: Target) -> Part {
    match target {
        Target::Query => Part::Query,
        Target::Key => Part::Key,
        Target::Value => Part::Value,
        Target::Output => Part::Output,
        Target::Gate => Part::Gate,
        Target::Up => Part::Up,
        Target::Down => Part::Down,
    }
}

impl Adapters {
    /// All zero, beside the parameters in `arena`.
    pub(super) fn new(lora: &Lora, spec: &DecoderSpec, parameters: &Layout, arena: &[f32]) -> Self {
        let layout = Layout::of(lora.tensors(spec));
        let ranges: HashMap<&str, &Range<usize>> = layout.slots().iter().map(|slot| (slot.name.as_str(), &slot.range)).collect();
        let range = |name: &str| ranges.get(name).map_or(0..0, |range| (*range).clone());
        let mut len = 0;
        let mut pair = |layer: usize, target: Target| {
            let [a, b] = target.adapters(layer);
            let size = parameters.block(layer, part(target)).len();
            len += size;
            let (a, b) = (range(&a), range(&b));
            Pair { layer, part: part(target), shape: target.shape(spec), frozen: len - size..len, a, b }
        };
        let places = (0..spec.layers).flat_map(|layer| lora.targets.iter().map(move |target| (layer, *target)));
        let pairs: Vec<Pair> = places.map(|(layer, target)| pair(layer, target)).collect();
        let mut frozen = Buffer::zeroed(len);
        for pair in &pairs {
            frozen[pair.frozen.clone()].copy_from_slice(&arena[parameters.block(pair.layer, pair.part)]);
        }
        Self {
            values: Buffer::zeroed(layout.len()),
            rank: lora.rank,
            scale: lora.scale(),
            dropout: lora.dropout as f32,
            frozen,
            index: pairs.iter().enumerate().map(|(index, pair)| ((pair.layer, pair.part), index)).collect(),
            pairs,
            layout,
        }
    }

    /// Takes a checked set; [`Adapters::merge`] must follow.
    pub(super) fn import(&mut self, cpu: &Cpu, set: &WeightSet) {
        self.layout.pack(cpu, set, &mut self.values);
    }

    /// Puts the adapters into the matrices of the parameters (L1).
    ///
    /// # Errors
    /// As [`Weights::change`].
    pub(super) fn merge(&self, cpu: &Cpu, parameters: &Layout, weights: &mut Weights) -> Result<(), EngineError> {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        weights.change(cpu, parameters, |arena| {
            for pair in &self.pairs {
                let (out, inner) = pair.shape;
                a.resize(self.rank * inner, 0.0);
                b.resize(out * self.rank, 0.0);
                linear::unpack(cpu, &self.values[pair.a.clone()], self.rank, inner, &mut a);
                linear::unpack(cpu, &self.values[pair.b.clone()], out, self.rank, &mut b);
                let product = Product { a: &a, b: &b, rank: self.rank, scale: self.scale };
                let merged = &mut arena[parameters.block(pair.layer, pair.part)];
                merge(cpu, &self.frozen[pair.frozen.clone()], pair.shape, product, merged);
            }
            Ok(())
        })
    }

    /// Whether training passes draw.
    pub(super) fn draws(&self) -> bool {
        self.dropout > 0.0
    }

    fn drops<'a>(&self, batch: &'a Batch, pair: &Pair) -> Option<Drops<'a>> {
        let module = pair.part as u32;
        let (keys, positions, layer) = (&batch.keys[..], &batch.positions[..], pair.layer as u32);
        (!keys.is_empty()).then_some(Drops { keys, positions, layer, module, probability: self.dropout })
    }

    fn pair(&self, layer: usize, part: Part) -> Option<&Pair> {
        self.index.get(&(layer, part)).map(|index| &self.pairs[*index])
    }
}

/// What dropping inputs of a projection's adapters changes, where this pass drops some: `y += s (x~ - x) A^T B^T`. The merged
/// matrix has given `s x A^T B^T` already.
pub(super) fn drop_inputs(
    model: Model<'_>,
    (layer, part): (usize, Part),
    batch: &Batch,
    x: &[f32],
    y: &mut [f32],
    space: &mut LowRank,
) {
    let Some(adapters) = model.adapters else { return };
    let Some(pair) = adapters.pair(layer, part) else { return };
    let Some(drops) = adapters.drops(batch, pair) else { return };
    let (cpu, (out, inner)) = (model.cpu, pair.shape);
    space.input.reserve(x.len());
    let change = &mut space.input[..x.len()];
    dropout::change(cpu, drops, x, change);
    let down = adapters.down(cpu, pair, change, inner, &mut space.down);
    let b = Matrix::f32(&adapters.values[pair.b.clone()]);
    linear::forward(cpu, down, adapters.rank, Output::Add, &mut [Projection { weight: b, out, y }]);
}

/// Working memory of adapters.
#[derive(Debug, Default)]
pub(super) struct LowRank {
    /// An input with some of it dropped, or what that changes, or the gradient of it. `[rows, in]`
    input: Buffer,
    /// The input in the bottleneck, times the scale, and its gradient from above. `[rows, r]`
    down: Buffer,
    up: Buffer,
    packed: RowPacked,
    packed_input: RowPacked,
}

/// A projection on the way back: `y = x W'^T` of `rows` rows.
pub(super) struct Pass<'a> {
    /// `[rows, in]`
    pub(super) x: &'a [f32],
    /// The same in the order that weight gradients read.
    pub(super) packed: &'a RowPacked,
    /// dL/dy. `[rows, out]`
    pub(super) dy: &'a [f32],
}

/// Adds to the gradients of a projection's adapters, where it has some: `dB += dy^T (s x~ A^T)`, `dA += (s dy B)^T x~`. The
/// gradient of the whole matrix is never made.
pub(super) fn backward(
    model: Model<'_>,
    adapters: &Adapters,
    (layer, part): (usize, Part),
    batch: &Batch,
    pass: Pass<'_>,
    space: &mut LowRank,
    gradients: &mut [f32],
) {
    let Some(pair) = adapters.pair(layer, part) else { return };
    let (cpu, rank, (out, inner)) = (model.cpu, adapters.rank, pair.shape);
    let LowRank { input, down, up, packed, packed_input } = space;
    let (mut x, mut read) = (pass.x, pass.packed);
    if let Some(drops) = adapters.drops(batch, pair) {
        input.reserve(x.len());
        let dropped = &mut input[..x.len()];
        dropped.copy_from_slice(x);
        dropout::add_gradient(cpu, drops, x, dropped);
        packed_input.pack(cpu, Format::F32, dropped, inner);
        x = dropped;
        read = packed_input;
    }
    let down = adapters.down(cpu, pair, x, inner, down);
    packed.pack(cpu, Format::F32, down, rank);
    linear::backward_weight(cpu, packed, pass.dy, out, &mut gradients[pair.b.clone()]);
    let up = adapters.up(cpu, pair, pass.dy, up);
    linear::backward_weight(cpu, read, up, rank, &mut gradients[pair.a.clone()]);
}

/// Adds what dropped inputs of a projection change in the gradient of its input, where this pass dropped some.
pub(super) fn drop_gradient(
    model: Model<'_>,
    (layer, part): (usize, Part),
    batch: &Batch,
    dy: &[f32],
    dx: &mut [f32],
    space: &mut LowRank,
) {
    let Some(adapters) = model.adapters else { return };
    let Some(pair) = adapters.pair(layer, part) else { return };
    let Some(drops) = adapters.drops(batch, pair) else { return };
    let up = adapters.up(model.cpu, pair, dy, &mut space.up);
    space.input.reserve(dx.len());
    let gradient = &mut space.input[..dx.len()];
    let a = Matrix::f32(&adapters.values[pair.a.clone()]);
    linear::backward_input(model.cpu, up, adapters.rank, a, pair.shape.1, Output::Set, gradient);
    dropout::add_gradient(model.cpu, drops, gradient, dx);
}

impl Adapters {
    /// `s x A^T`. `[rows, r]`
    fn down<'a>(&self, cpu: &Cpu, pair: &Pair, x: &[f32], inner: usize, buffer: &'a mut Buffer) -> &'a [f32] {
        let len = x.len() / inner * self.rank;
        buffer.reserve(len);
        let down = &mut buffer[..len];
        let weight = Matrix::f32(&self.values[pair.a.clone()]);
        linear::forward(cpu, x, inner, Output::Set, &mut [Projection { weight, out: self.rank, y: &mut *down }]);
        down.iter_mut().for_each(|value| *value *= self.scale);
        down
    }

    /// `s dy B`. `[rows, r]`
    fn up<'a>(&self, cpu: &Cpu, pair: &Pair, dy: &[f32], buffer: &'a mut Buffer) -> &'a [f32] {
        let out = pair.shape.0;
        let len = dy.len() / out * self.rank;
        buffer.reserve(len);
        let up = &mut buffer[..len];
        let b = Matrix::f32(&self.values[pair.b.clone()]);
        linear::backward_input(cpu, dy, out, b, self.rank, Output::Set, up);
        up.iter_mut().for_each(|value| *value *= self.scale);
        up
    }
}
