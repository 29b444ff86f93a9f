//! The way back: from gradients of log-probs and entropies to gradients of every parameter, block by block.
//!
//! Norms and the MLP's product are computed again instead of kept. Every parameter's gradient is one chain over the
//! rows of all micro-batches in the order they came (B2).
use super::block::{self, Batch, Memory, Model};
use super::forward::Pending;
use super::layout::Part;
use super::lora::{self, Adapters, LowRank, Pass};
use super::norm::{self, Place};
use super::record::Record;
use super::workspace::{BackwardSpace, Keeping, Kept, KeptBlock, Workspace};
use crate::Upstream;
use cohort_kernels::attention::{self, BackwardSpan};
use cohort_kernels::linear::{self, Output, RowPacked};
use cohort_kernels::rope::{self, Direction};
use cohort_kernels::{Buffer, bias, embedding, gelu, head, rmsnorm, swiglu};
use cohort_model::family::{Mlp, Positions};
use std::ops::{ControlFlow, Range};

/// Where gradients go: to every parameter, or to adapters alone.
pub(super) struct Gradients<'a> {
    /// In the layout of the adapters where there are some, else of the parameters.
    pub(super) arena: &'a mut [f32],
    pub(super) adapters: Option<&'a Adapters>,
}

impl Gradients<'_> {
    /// A parameter's; empty where it is frozen.
    pub(super) fn of(&mut self, range: Range<usize>) -> &mut [f32] {
        match self.adapters {
            Some(_) => &mut [],
            None => &mut self.arena[range],
        }
    }
}

/// Told, of each stage of a backward pass, that its gradients are final, with all of them.
pub(super) type Done<'a> = dyn FnMut(&mut [f32], usize) -> ControlFlow<()> + 'a;

/// Adds the gradients of one forward pass. Stages are those of [`Layout::backward_order`](super::layout::Layout::backward_order);
/// breaks off where `done` does.
pub(super) fn backward(
    model: Model<'_>,
    pending: &mut Pending,
    (kept, record): (&mut Kept, Option<&Record>),
    work: &mut Workspace,
    space: &mut BackwardSpace,
    (upstream, done): (Upstream<'_>, &mut Done<'_>),
    mut gradients: Gradients<'_>,
) -> ControlFlow<()> {
    let rows = pending.batch.rows();
    let width = model.spec.hidden;
    space.reserve(model, rows);
    ends(model, pending, work, &mut space.dx[..rows * width], upstream, &mut gradients);
    done(gradients.arena, 0)?;
    for layer in (0..model.spec.layers).rev() {
        match (record, &pending.recalled) {
            (Some(record), Some(recalled)) => record.recall(model.cpu, layer, recalled, kept.block(model, layer, rows, true)),
            _ if kept.one_block && layer + 1 < model.spec.layers => repeat(model, layer, &pending.batch, kept, work),
            _ => {}
        }
        let mut block = Block { model, layer, rows, batch: &pending.batch, gradients: &mut gradients };
        let mut kept = kept.block(model, layer, rows, true);
        block.mlp(&mut kept, space);
        block.attention(&mut kept, space);
        done(gradients.arena, model.spec.layers - layer)?;
    }
    let (spec, batch, dx) = (model.spec, &pending.batch, &space.dx[..rows * width]);
    let gradient = gradients.of(model.layout.embedding());
    if !gradient.is_empty() {
        embedding::scatter_add(model.cpu, gradient, spec.vocab, width, &batch.tokens, dx);
    }
    let gradient = gradients.of(model.layout.positions());
    if !gradient.is_empty() {
        embedding::scatter_add(model.cpu, gradient, spec.max_context, width, &batch.positions, dx);
    }
    done(gradients.arena, spec.layers + 1)
}

/// Computes a block's activations again from what went into it: the same function, so the same bits.
fn repeat(model: Model<'_>, layer: usize, batch: &Batch, kept: &mut Kept, work: &mut Workspace) {
    let stream = work.stream(model, batch.rows());
    stream.copy_from_slice(kept.entry(layer, stream.len()));
    let (x, pages, mut activations) = work.split(model, batch.rows(), Keeping::Block(kept, layer));
    block::forward(model, layer, batch, &mut Memory::Layer(pages), x, &mut activations);
}

/// The output projection and the last norm; `dx` is set, zero at rows that predict no target.
fn ends(
    model: Model<'_>,
    pending: &mut Pending,
    work: &mut Workspace,
    dx: &mut [f32],
    upstream: Upstream<'_>,
    gradients: &mut Gradients<'_>,
) {
    let (cpu, width, vocab) = (model.cpu, model.spec.hidden, model.spec.vocab);
    let target = |index: usize| head::Upstream {
        target: pending.targets[index],
        stats: pending.stats[index],
        d_logp: upstream.d_logp[index],
        d_entropy: upstream.d_entropy.map_or(0.0, |d| d[index]),
    };
    let targets: Vec<_> = (0..pending.targets.len()).map(target).collect();
    let mut d_hidden = Buffer::zeroed(pending.hidden.len());
    let gradient = gradients.of(model.layout.head());
    let hidden = (&pending.hidden[..], width);
    head::backward(cpu, &mut work.head, hidden, (model.head(), vocab), &targets, &mut d_hidden, gradient);

    let mut d_stream = Buffer::zeroed(pending.stream.len());
    let rows = norm::Rows { dy: &d_hidden, x: &pending.stream, rstd: &pending.rstd, dx: &mut d_stream };
    norm::backward(model, Place::Final, rows, gradients);
    dx.fill(0.0);
    for (row, gradient) in pending.rows.iter().zip(d_stream.chunks_exact(width)) {
        // The last row of a shared beginning predicts the first target of each that shares it.
        dx[row * width..][..width].iter_mut().zip(gradient).for_each(|(sum, term)| *sum += term);
    }
}

/// One block of the model and where its gradients go.
struct Block<'a, 'g> {
    model: Model<'a>,
    layer: usize,
    rows: usize,
    batch: &'a Batch,
    gradients: &'a mut Gradients<'g>,
}

impl Block<'_, '_> {
    /// `[out, in]` of a matrix.
    fn shape(&self, part: Part) -> (usize, usize) {
        let (spec, (wide, narrow)) = (self.model.spec, self.model.widths());
        match part {
            Part::Query => (wide, spec.hidden),
            Part::Key | Part::Value => (narrow, spec.hidden),
            Part::Output => (spec.hidden, wide),
            Part::Gate | Part::Up => (spec.intermediate, spec.hidden),
            Part::Down => (spec.hidden, spec.intermediate),
            vector => (1, self.model.layout.block(self.layer, vector).len()),
        }
    }

    /// Adds to the gradient of a matrix, or of its adapters.
    fn weight(&mut self, part: Part, pass: Pass<'_>, space: &mut LowRank) {
        if let Some(adapters) = self.gradients.adapters {
            let place = (self.layer, part);
            return lora::backward(self.model, adapters, place, self.batch, pass, space, self.gradients.arena);
        }
        let out = self.shape(part).0;
        let gradient = self.gradients.of(self.model.layout.block(self.layer, part));
        linear::backward_weight(self.model.cpu, pass.packed, pass.dy, out, gradient);
    }

    /// Adds to the gradient of a projection's bias, where the family has one.
    fn bias(&mut self, part: Part, dy: &[f32]) {
        let gradient = self.gradients.of(self.model.layout.block(self.layer, part));
        if !gradient.is_empty() {
            bias::backward(self.model.cpu, dy, gradient);
        }
    }

    /// Replaces the gradient of normalised heads by that of the heads before, where the family has such norms.
    fn head_norm(&mut self, part: Part, dy: &mut [f32], raw: &[f32], rstd: &[f32], d_raw: &mut [f32]) {
        if raw.is_empty() {
            return;
        }
        let d_raw = &mut d_raw[..raw.len()];
        d_raw.fill(0.0);
        let weight = self.model.vector(self.layer, part);
        let d_weight = self.gradients.of(self.model.layout.block(self.layer, part));
        rmsnorm::backward(self.model.cpu, rmsnorm::Backward { dy, x: raw, weight, rstd, dx: d_raw, d_weight });
        dy.copy_from_slice(d_raw);
    }

    /// The gradient of a matrix's input.
    fn input(&self, part: Part, dy: &[f32], output: Output, dx: &mut [f32], space: &mut LowRank) {
        let (out, inner) = self.shape(part);
        let weight = self.model.matrix(self.layer, part, inner);
        linear::backward_input(self.model.cpu, dy, out, weight, inner, output, dx);
        lora::drop_gradient(self.model, (self.layer, part), self.batch, dy, dx, space);
    }

    /// Computes a norm's result again and packs it.
    fn repeat_norm(&self, place: Place, x: &[f32], norm: &mut [f32], rstd: &mut [f32], packed: &mut RowPacked) {
        norm::forward(self.model, place, x, norm, rstd);
        packed.pack(self.model.cpu, self.model.format(), norm, self.model.spec.hidden);
    }

    fn mlp(&mut self, kept: &mut KeptBlock<'_>, space: &mut BackwardSpace) {
        let (cpu, spec, place) = (self.model.cpu, self.model.spec, Place::Mlp(self.layer));
        let (narrow, wide) = (self.rows * spec.hidden, self.rows * spec.intermediate);
        let (dx, product, d_product) = (&mut space.dx[..narrow], &mut space.product[..wide], &mut space.d_product[..wide]);
        let (norm, d_norm) = (&mut space.norm[..narrow], &mut space.d_norm[..narrow]);
        let gated = spec.family.traits().mlp == Mlp::SwiGlu;
        if gated {
            swiglu::forward(cpu, kept.gate, kept.up, product);
        } else {
            gelu::forward(cpu, kept.up, product);
        }
        space.packed.pack(cpu, self.model.format(), product, spec.intermediate);
        self.bias(Part::DownBias, dx);
        self.weight(Part::Down, Pass { x: product, packed: &space.packed, dy: dx }, &mut space.low_rank);
        self.input(Part::Down, dx, Output::Set, d_product, &mut space.low_rank);
        self.repeat_norm(place, kept.middle, norm, kept.mlp_rstd, &mut space.packed);
        if gated {
            swiglu::backward(cpu, d_product, kept.gate, kept.up);
            self.weight(Part::Gate, Pass { x: norm, packed: &space.packed, dy: kept.gate }, &mut space.low_rank);
            self.input(Part::Gate, kept.gate, Output::Set, d_norm, &mut space.low_rank);
        } else {
            gelu::backward(cpu, d_product, kept.up);
        }
        self.bias(Part::UpBias, kept.up);
        self.weight(Part::Up, Pass { x: norm, packed: &space.packed, dy: kept.up }, &mut space.low_rank);
        let output = if gated { Output::Continue } else { Output::Set };
        self.input(Part::Up, kept.up, output, d_norm, &mut space.low_rank);
        let rows = norm::Rows { dy: d_norm, x: kept.middle, rstd: kept.mlp_rstd, dx };
        norm::backward(self.model, place, rows, self.gradients);
    }

    fn attention(&mut self, kept: &mut KeptBlock<'_>, space: &mut BackwardSpace) {
        let batch = self.batch;
        let (cpu, hidden, (wide, narrow)) = (self.model.cpu, self.model.spec.hidden, self.model.widths());
        let (dx, norm) = (&mut space.dx[..self.rows * hidden], &mut space.norm[..self.rows * hidden]);
        let (d_norm, d_attended) = (&mut space.d_norm[..self.rows * hidden], &mut space.d_attended[..self.rows * wide]);
        let dq = &mut space.dq[..self.rows * wide];
        let (dk, dv) = (&mut space.dk[..self.rows * narrow], &mut space.dv[..self.rows * narrow]);
        space.packed.pack(cpu, self.model.format(), kept.attended, wide);
        self.bias(Part::OutputBias, dx);
        self.weight(Part::Output, Pass { x: kept.attended, packed: &space.packed, dy: dx }, &mut space.low_rank);
        self.input(Part::Output, dx, Output::Set, d_attended, &mut space.low_rank);
        let mut families = families(batch, (wide, narrow), kept, d_attended, (&mut *dq, &mut *dk, &mut *dv));
        attention::backward(cpu, self.model.heads(), &mut families);
        if self.model.spec.family.traits().positions == Positions::Rotary {
            rope::rotate(cpu, self.model.rope, &batch.positions, Direction::Backward, dq);
            rope::rotate(cpu, self.model.rope, &batch.positions, Direction::Backward, dk);
        }
        self.head_norm(Part::QueryNorm, dq, kept.raw.q, kept.raw.q_rstd, &mut space.d_raw);
        self.head_norm(Part::KeyNorm, dk, kept.raw.k, kept.raw.k_rstd, &mut space.d_raw);
        self.repeat_norm(Place::Input(self.layer), kept.input, norm, kept.input_rstd, &mut space.packed);
        for (part, bias, dy, output) in [
            (Part::Query, Part::QueryBias, &*dq, Output::Set),
            (Part::Key, Part::KeyBias, &*dk, Output::Continue),
            (Part::Value, Part::ValueBias, &*dv, Output::Continue),
        ] {
            self.bias(bias, dy);
            self.weight(part, Pass { x: norm, packed: &space.packed, dy }, &mut space.low_rank);
            self.input(part, dy, output, d_norm, &mut space.low_rank);
        }
        let rows = norm::Rows { dy: d_norm, x: kept.input, rstd: kept.input_rstd, dx };
        norm::backward(self.model, Place::Input(self.layer), rows, self.gradients);
    }
}

/// Cuts a block's rows into its sequences, those that share a beginning together.
fn families<'a>(
    batch: &Batch,
    (wide, narrow): (usize, usize),
    kept: &'a KeptBlock<'_>,
    d_out: &'a [f32],
    (mut dq, mut dk, mut dv): (&'a mut [f32], &'a mut [f32], &'a mut [f32]),
) -> Vec<Vec<BackwardSpan<'a>>> {
    let mut families: Vec<Vec<_>> = Vec::with_capacity(batch.runs.len());
    for run in &batch.runs {
        let (q_rows, k_rows) = (run.row * wide..(run.row + run.rows) * wide, run.row * narrow..(run.row + run.rows) * narrow);
        let (own_q, rest_q) = dq.split_at_mut(q_rows.len());
        let (own_k, rest_k) = dk.split_at_mut(k_rows.len());
        let (own_v, rest_v) = dv.split_at_mut(k_rows.len());
        (dq, dk, dv) = (rest_q, rest_k, rest_v);
        let span = BackwardSpan {
            prefix: run.start,
            q: &kept.q[q_rows.clone()],
            k: &kept.k[k_rows.clone()],
            v: &kept.v[k_rows],
            out: &kept.attended[q_rows.clone()],
            d_out: &d_out[q_rows],
            dq: own_q,
            dk: own_k,
            dv: own_v,
        };
        match families.last_mut() {
            Some(family) if run.prefix.is_some() => family.push(span),
            _ => families.push(vec![span]),
        }
    }
    families
}
