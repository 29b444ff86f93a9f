//! Buffers of the passes, kept between calls: one block's working set, and what training keeps of every block.
use super::block::{Activations, Model, Raw};
use super::lora::LowRank;
use cohort_kernels::Buffer;
use cohort_kernels::head::Head;
use cohort_kernels::linear::RowPacked;
use cohort_model::family::Mlp;

/// One block's working set and the ends of the network.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// Residual stream. `[rows, hidden]`
    pub(super) x: Buffer,
    /// Keys and values of one layer, for passes without a key/value memory.
    pub(super) pages: Buffer,
    /// Working memory of the fused output projection.
    pub(super) head: Head,
    norm: Buffer,
    product: Buffer,
    low_rank: LowRank,
    block: Kept,
}

/// Activations that a block's backward pass reads. `[blocks][rows, width]` each: of every block, or of one at a time where
/// they are computed again, or fetched from what sampling kept, on the way back.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Keep what goes into each block, and of the rest only the block at hand.
    pub(super) one_block: bool,
    /// What went into each block, where they are computed again. `[layers][rows, hidden]`
    entries: Buffer,
    /// Residual stream before attention and before the MLP.
    pub(super) input: Buffer,
    pub(super) middle: Buffer,
    pub(super) input_rstd: Buffer,
    pub(super) mlp_rstd: Buffer,
    /// Queries and keys before their norms, and its scales.
    pub(super) raw_q: Buffer,
    pub(super) raw_k: Buffer,
    pub(super) q_rstd: Buffer,
    pub(super) k_rstd: Buffer,
    pub(super) q: Buffer,
    pub(super) k: Buffer,
    pub(super) v: Buffer,
    pub(super) attended: Buffer,
    pub(super) gate: Buffer,
    pub(super) up: Buffer,
}

/// One block's part of [`Kept`].
pub(super) struct KeptBlock<'a> {
    pub(super) input: &'a mut [f32],
    pub(super) middle: &'a mut [f32],
    pub(super) input_rstd: &'a mut [f32],
    pub(super) mlp_rstd: &'a mut [f32],
    pub(super) raw: Raw<'a>,
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) attended: &'a mut [f32],
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
}

impl KeptBlock<'_> {
    /// All of it, `[rows, width]` each, some of no width; the order is that of rows kept elsewhere
    /// ([`Record`](super::record::Record)).
    pub(super) fn parts(&mut self) -> [&mut [f32]; 14] {
        let Raw { q, k, q_rstd, k_rstd } = &mut self.raw;
        [
            self.input,
            self.middle,
            self.input_rstd,
            self.mlp_rstd,
            q,
            k,
            q_rstd,
            k_rstd,
            self.q,
            self.k,
            self.v,
            self.attended,
            self.gate,
            self.up,
        ]
    }
}

fn part(buffer: &mut Buffer, block: usize, len: usize) -> &mut [f32] {
    &mut buffer[block * len..][..len]
}

/// Width of the MLP's gate; 0 where it has none.
fn gate_width(model: Model<'_>) -> usize {
    match model.spec.family.traits().mlp {
        Mlp::SwiGlu => model.spec.intermediate,
        Mlp::Gelu => 0,
    }
}

/// Heads of queries and of keys that are kept as they were before their norms.
fn raw_rows(model: Model<'_>, rows: usize) -> (usize, usize) {
    if model.spec.family.traits().head_norms { (rows * model.spec.heads, rows * model.spec.kv_heads) } else { (0, 0) }
}

impl Kept {
    /// Room for a pass of `rows` rows that is going to be reversed.
    pub(super) fn reserve_all(&mut self, model: Model<'_>, rows: usize) {
        let layers = model.spec.layers;
        if self.one_block {
            self.entries.reserve(layers * rows * model.spec.hidden);
        }
        self.reserve(model, if self.one_block { 1 } else { layers }, rows, true);
    }

    /// Gives the memory back.
    pub(super) fn release(&mut self) {
        *self = Self { one_block: self.one_block, ..Self::default() };
    }

    /// What goes into a block, kept if it will be wanted again.
    pub(super) fn enter(&mut self, layer: usize, x: &[f32]) {
        if self.one_block {
            part(&mut self.entries, layer, x.len()).copy_from_slice(x);
        }
    }

    /// What went into a block whose activations are not there any more.
    pub(super) fn entry(&mut self, layer: usize, len: usize) -> &[f32] {
        part(&mut self.entries, layer, len)
    }

    /// Room for `blocks` blocks of `rows` rows; without residuals for passes that are neither reversed nor recorded.
    pub(super) fn reserve(&mut self, model: Model<'_>, blocks: usize, rows: usize, residuals: bool) {
        let (spec, (wide, narrow), total) = (model.spec, model.widths(), blocks * rows);
        if residuals {
            self.input.reserve(total * spec.hidden);
            self.middle.reserve(total * spec.hidden);
        }
        self.input_rstd.reserve(total);
        self.mlp_rstd.reserve(total);
        let raw = raw_rows(model, total);
        self.raw_q.reserve(raw.0 * spec.head_dim);
        self.raw_k.reserve(raw.1 * spec.head_dim);
        self.q_rstd.reserve(raw.0);
        self.k_rstd.reserve(raw.1);
        self.q.reserve(total * wide);
        self.k.reserve(total * narrow);
        self.v.reserve(total * narrow);
        self.attended.reserve(total * wide);
        self.gate.reserve(total * gate_width(model));
        self.up.reserve(total * spec.intermediate);
    }

    /// One block's part.
    pub(super) fn block(&mut self, model: Model<'_>, block: usize, rows: usize, residuals: bool) -> KeptBlock<'_> {
        let (spec, (wide, narrow)) = (model.spec, model.widths());
        let stream = if residuals { rows * spec.hidden } else { 0 };
        let raw = raw_rows(model, rows);
        let block = if self.one_block { 0 } else { block };
        KeptBlock {
            input: part(&mut self.input, block, stream),
            middle: part(&mut self.middle, block, stream),
            input_rstd: part(&mut self.input_rstd, block, rows),
            mlp_rstd: part(&mut self.mlp_rstd, block, rows),
            raw: Raw {
                q: part(&mut self.raw_q, block, raw.0 * spec.head_dim),
                k: part(&mut self.raw_k, block, raw.1 * spec.head_dim),
                q_rstd: part(&mut self.q_rstd, block, raw.0),
                k_rstd: part(&mut self.k_rstd, block, raw.1),
            },
            q: part(&mut self.q, block, rows * wide),
            k: part(&mut self.k, block, rows * narrow),
            v: part(&mut self.v, block, rows * narrow),
            attended: part(&mut self.attended, block, rows * wide),
            gate: part(&mut self.gate, block, rows * gate_width(model)),
            up: part(&mut self.up, block, rows * spec.intermediate),
        }
    }
}

/// What becomes of a block's activations.
pub(super) enum Keeping<'a> {
    /// Nothing reads them again.
    Nothing,
    /// They are read before the next block ([`Workspace::computed`]).
    ForNow,
    /// They stay, as this block of these.
    Block(&'a mut Kept, usize),
}

impl Workspace {
    /// Room for a pass of `rows` rows whose blocks' activations are kept elsewhere.
    pub(super) fn reserve(&mut self, model: Model<'_>, rows: usize) {
        self.x.reserve(rows * model.spec.hidden);
        self.norm.reserve(rows * model.spec.hidden);
        self.product.reserve(rows * model.spec.intermediate);
    }

    /// Room for a pass that keeps no activations; one that is recorded has the residuals of the block at hand.
    pub(super) fn reserve_passing(&mut self, model: Model<'_>, rows: usize, recorded: bool) {
        self.reserve(model, rows);
        self.block.reserve(model, 1, rows, recorded);
    }

    /// The block that a recorded pass has just computed.
    pub(super) fn computed(&mut self, model: Model<'_>, rows: usize) -> KeptBlock<'_> {
        self.block.block(model, 0, rows, true)
    }

    /// The residual stream of a pass.
    pub(super) fn stream(&mut self, model: Model<'_>, rows: usize) -> &mut [f32] {
        &mut self.x[..rows * model.spec.hidden]
    }

    /// The residual stream, the layer's pages and a block's activations.
    pub(super) fn split<'a>(
        &'a mut self,
        model: Model<'_>,
        rows: usize,
        keeping: Keeping<'a>,
    ) -> (&'a mut [f32], &'a mut Buffer, Activations<'a>) {
        let residuals = !matches!(keeping, Keeping::Nothing);
        let block = match keeping {
            Keeping::Block(kept, layer) => kept.block(model, layer, rows, true),
            Keeping::Nothing | Keeping::ForNow => self.block.block(model, 0, rows, residuals),
        };
        let activations = Activations {
            norm: &mut self.norm[..rows * model.spec.hidden],
            product: &mut self.product[..rows * model.spec.intermediate],
            input_rstd: block.input_rstd,
            raw: block.raw,
            q: block.q,
            k: block.k,
            v: block.v,
            attended: block.attended,
            mlp_rstd: block.mlp_rstd,
            gate: block.gate,
            up: block.up,
            low_rank: &mut self.low_rank,
            residuals: residuals.then_some((block.input, block.middle)),
        };
        (&mut self.x[..rows * model.spec.hidden], &mut self.pages, activations)
    }
}

/// Gradients on the way back through one block.
#[derive(Debug, Default)]
pub(super) struct BackwardSpace {
    /// Gradient of the residual stream. `[rows, hidden]`
    pub(super) dx: Buffer,
    /// The recomputed input of a projection, or the gradient of one. `[rows, hidden]`
    pub(super) norm: Buffer,
    pub(super) d_norm: Buffer,
    /// The recomputed product of gate and up, and its gradient. `[rows, intermediate]`
    pub(super) product: Buffer,
    pub(super) d_product: Buffer,
    pub(super) d_attended: Buffer,
    pub(super) dq: Buffer,
    pub(super) dk: Buffer,
    pub(super) dv: Buffer,
    /// Gradient of queries or of keys before their norm.
    pub(super) d_raw: Buffer,
    pub(super) low_rank: LowRank,
    /// A projection's input in the order that the weight gradient reads.
    pub(super) packed: RowPacked,
}

impl BackwardSpace {
    pub(super) fn reserve(&mut self, model: Model<'_>, rows: usize) {
        let (spec, (wide, narrow)) = (model.spec, model.widths());
        for buffer in [&mut self.dx, &mut self.norm, &mut self.d_norm] {
            buffer.reserve(rows * spec.hidden);
        }
        self.product.reserve(rows * spec.intermediate);
        self.d_product.reserve(rows * spec.intermediate);
        self.d_attended.reserve(rows * wide);
        self.dq.reserve(rows * wide);
        self.dk.reserve(rows * narrow);
        self.dv.reserve(rows * narrow);
        self.d_raw.reserve(raw_rows(model, rows).0 * spec.head_dim);
    }
}
