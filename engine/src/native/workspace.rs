//! Buffers of the passes, kept between calls: one block's working set, and what training keeps of every block.
use super::block::{Activations, Model};
use cohort_kernels::Buffer;
use cohort_kernels::head::Head;
use cohort_kernels::linear::RowPacked;

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
    block: Kept,
}

/// Activations that a block's backward pass reads. `[blocks][rows, width]` each.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Residual stream before attention and before the MLP.
    pub(super) input: Buffer,
    pub(super) middle: Buffer,
    pub(super) input_rstd: Buffer,
    pub(super) mlp_rstd: Buffer,
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
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) attended: &'a mut [f32],
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
}

fn part(buffer: &mut Buffer, block: usize, len: usize) -> &mut [f32] {
    &mut buffer[block * len..][..len]
}

impl Kept {
    /// Room for `blocks` blocks of `rows` rows; without residuals for passes that are never reversed.
    pub(super) fn reserve(&mut self, model: Model<'_>, blocks: usize, rows: usize, residuals: bool) {
        let (spec, (wide, narrow), total) = (model.spec, model.widths(), blocks * rows);
        if residuals {
            self.input.reserve(total * spec.hidden);
            self.middle.reserve(total * spec.hidden);
        }
        self.input_rstd.reserve(total);
        self.mlp_rstd.reserve(total);
        self.q.reserve(total * wide);
        self.k.reserve(total * narrow);
        self.v.reserve(total * narrow);
        self.attended.reserve(total * wide);
        self.gate.reserve(total * spec.intermediate);
        self.up.reserve(total * spec.intermediate);
    }

    /// One block's part.
    pub(super) fn block(&mut self, model: Model<'_>, block: usize, rows: usize, residuals: bool) -> KeptBlock<'_> {
        let (spec, (wide, narrow)) = (model.spec, model.widths());
        let stream = if residuals { rows * spec.hidden } else { 0 };
        KeptBlock {
            input: part(&mut self.input, block, stream),
            middle: part(&mut self.middle, block, stream),
            input_rstd: part(&mut self.input_rstd, block, rows),
            mlp_rstd: part(&mut self.mlp_rstd, block, rows),
            q: part(&mut self.q, block, rows * wide),
            k: part(&mut self.k, block, rows * narrow),
            v: part(&mut self.v, block, rows * narrow),
            attended: part(&mut self.attended, block, rows * wide),
            gate: part(&mut self.gate, block, rows * spec.intermediate),
            up: part(&mut self.up, block, rows * spec.intermediate),
        }
    }
}

impl Workspace {
    /// Room for a pass of `rows` rows; `train` keeps the blocks' activations elsewhere.
    pub(super) fn reserve(&mut self, model: Model<'_>, rows: usize, train: bool) {
        self.x.reserve(rows * model.spec.hidden);
        self.norm.reserve(rows * model.spec.hidden);
        self.product.reserve(rows * model.spec.intermediate);
        if !train {
            self.block.reserve(model, 1, rows, false);
        }
    }

    /// The residual stream of a pass.
    pub(super) fn stream(&mut self, model: Model<'_>, rows: usize) -> &mut [f32] {
        &mut self.x[..rows * model.spec.hidden]
    }

    /// The residual stream, the layer's pages and a block's activations; kept ones go to block `layer` of `kept`.
    pub(super) fn split<'a>(
        &'a mut self,
        model: Model<'_>,
        rows: usize,
        kept: Option<(&'a mut Kept, usize)>,
    ) -> (&'a mut [f32], &'a mut Buffer, Activations<'a>) {
        let residuals = kept.is_some();
        let block = match kept {
            Some((kept, layer)) => kept.block(model, layer, rows, true),
            None => self.block.block(model, 0, rows, false),
        };
        let activations = Activations {
            norm: &mut self.norm[..rows * model.spec.hidden],
            product: &mut self.product[..rows * model.spec.intermediate],
            input_rstd: block.input_rstd,
            q: block.q,
            k: block.k,
            v: block.v,
            attended: block.attended,
            mlp_rstd: block.mlp_rstd,
            gate: block.gate,
            up: block.up,
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
    }
}
