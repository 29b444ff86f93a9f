//! The forward pass through the blocks: rows of any sequences together, each at its own position.
//!
//! This one function serves prefill, decode and training, which is why they agree to the bit (B1).
use super::layout::{Layout, Part};
use super::lora::{self, Adapters, LowRank};
use super::norm::{self, Place};
use super::quantized::Quantized;
use super::weights::Weights;
use cohort_kernels::attention::{self, Append, Heads, PAGE, Span};
use cohort_kernels::linear::{self, Matrix, Output, Projection};
use cohort_kernels::rope::{self, Direction, RopeTable};
use cohort_kernels::{Buffer, Cpu, Format, bias, embedding, gelu, rmsnorm, swiglu};
use cohort_model::DecoderSpec;
use cohort_model::family::{Mlp, Positions};
use std::ops::Range;
use std::sync::Arc;

/// What the blocks are made of.
#[derive(Clone, Copy)]
pub(super) struct Model<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) spec: &'a DecoderSpec,
    pub(super) layout: &'a Layout,
    pub(super) weights: &'a Weights,
    /// What products read instead of the weights' own matrices.
    pub(super) quantized: Option<&'a Quantized>,
    pub(super) rope: &'a RopeTable,
    /// What is trained, where it is not the parameters.
    pub(super) adapters: Option<&'a Adapters>,
}

impl<'a> Model<'a> {
    pub(super) fn heads(&self) -> Heads {
        heads(self.spec)
    }

    /// A block's vector.
    pub(super) fn vector(&self, layer: usize, part: Part) -> &'a [f32] {
        self.weights.vector(self.layout.block(layer, part))
    }

    /// A block's matrix with `inner` columns, as products read it.
    pub(super) fn matrix(&self, layer: usize, part: Part, inner: usize) -> Matrix<'a> {
        self.product(self.layout.block(layer, part), inner)
    }

    fn product(&self, range: Range<usize>, inner: usize) -> Matrix<'a> {
        match self.quantized {
            Some(quantized) => quantized.matrix(&range),
            None => self.weights.matrix(range, inner),
        }
    }

    /// What tokens are looked up in. `[vocab, hidden]`
    pub(super) fn embedding(&self) -> Matrix<'a> {
        self.weights.matrix(self.layout.embedding(), self.spec.hidden)
    }

    /// The output projection. `[vocab, hidden]`
    pub(super) fn head(&self) -> Matrix<'a> {
        self.product(self.layout.head(), self.spec.hidden)
    }

    /// Format of the products of training.
    pub(super) fn format(&self) -> Format {
        self.weights.format()
    }

    /// Width of all query heads and of all key/value heads.
    pub(super) fn widths(&self) -> (usize, usize) {
        (self.spec.heads * self.spec.head_dim, self.spec.kv_heads * self.spec.head_dim)
    }
}

pub(super) fn heads(spec: &DecoderSpec) -> Heads {
    Heads { query: spec.heads, key_value: spec.kv_heads, dim: spec.head_dim }
}

/// Consecutive rows of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// First row in the batch.
    pub(super) row: usize,
    /// Number of rows.
    pub(super) rows: usize,
    /// Position of the first one.
    pub(super) start: usize,
    /// First row of the run whose beginning is this one's, up to `start`; `None` where what came before is in memory.
    pub(super) prefix: Option<usize>,
}

impl Run {
    /// Pages that hold it and all before it.
    fn pages(&self) -> usize {
        Heads::pages(self.start + self.rows)
    }
}

/// Tokens of a pass and where they stand.
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) runs: Vec<Run>,
    /// Key of each row's sequence, where this pass draws; else empty.
    pub(super) keys: Vec<u64>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { tokens: Vec::new(), positions: Vec::new(), runs: Vec::new(), keys: Vec::new() }
    }

    /// Adds tokens of one sequence from a position on. `prefix`: see [`Run::prefix`].
    pub(super) fn push(&mut self, tokens: &[u32], start: usize, prefix: Option<usize>) {
        self.runs.push(Run { row: self.tokens.len(), rows: tokens.len(), start, prefix });
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((start..start + tokens.len()).map(|p| p as u32));
    }

    /// Names the rows of the last sequence for draws.
    pub(super) fn key(&mut self, key: u64) {
        self.keys.resize(self.tokens.len(), key);
    }

    pub(super) fn rows(&self) -> usize {
        self.tokens.len()
    }
}

/// Where keys and values of the runs go.
pub(super) enum Memory<'a> {
    /// Pages of all layers, per run; those from its first row on are the run's alone.
    Pages(&'a mut [Vec<Arc<Buffer>>]),
    /// One layer's pages for all runs one after the other, used again by the next layer.
    Layer(&'a mut Buffer),
}

impl Memory<'_> {
    /// Makes room for one layer of the runs.
    fn reserve(&mut self, page: usize, runs: &[Run]) {
        if let Self::Layer(buffer) = self {
            buffer.reserve(runs.iter().map(Run::pages).sum::<usize>() * page);
        }
    }

    /// Each run's pages of one layer, from the one that holds position `from(run)`, to be written.
    fn write(&mut self, layer: usize, page: usize, runs: &[Run], from: impl Fn(&Run) -> usize) -> Vec<Vec<&mut [f32]>> {
        match self {
            Self::Pages(sequences) => {
                let first = runs.iter().map(|run| from(run) / PAGE);
                let own = sequences.iter_mut().zip(first).map(|(pages, first)| pages.iter_mut().skip(first));
                own.map(|pages| pages.filter_map(Arc::get_mut).map(|all| &mut all[layer * page..][..page]).collect()).collect()
            }
            Self::Layer(buffer) => {
                let mut pages = buffer.chunks_exact_mut(page);
                runs.iter().map(|run| pages.by_ref().take(run.pages()).skip(from(run) / PAGE).collect()).collect()
            }
        }
    }

    /// Each run's pages of one layer, from position 0.
    fn read(&self, layer: usize, page: usize, runs: &[Run]) -> Vec<Vec<&[f32]>> {
        match self {
            Self::Pages(sequences) => {
                sequences.iter().map(|pages| pages.iter().map(|all| &all[layer * page..][..page]).collect()).collect()
            }
            Self::Layer(buffer) => {
                let mut pages = buffer.chunks_exact(page);
                runs.iter().map(|run| pages.by_ref().take(run.pages()).collect()).collect()
            }
        }
    }
}

/// What a block computes on the way, `rows` high; the backward pass needs some of it.
pub(super) struct Activations<'a> {
    pub(super) norm: &'a mut [f32],
    pub(super) input_rstd: &'a mut [f32],
    /// Queries and keys as projected, where a norm follows; empty where none does.
    pub(super) raw: Raw<'a>,
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) attended: &'a mut [f32],
    pub(super) mlp_rstd: &'a mut [f32],
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    pub(super) product: &'a mut [f32],
    pub(super) low_rank: &'a mut LowRank,
    /// The residual stream before attention and before the MLP, where the backward pass wants it.
    pub(super) residuals: Option<(&'a mut [f32], &'a mut [f32])>,
}

/// What the norms of queries and keys read, and the scales that they found. `[rows * heads, head_dim]`, `[rows * heads]`
pub(super) struct Raw<'a> {
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) q_rstd: &'a mut [f32],
    pub(super) k_rstd: &'a mut [f32],
}

/// `x [rows, hidden]`: the tokens' embeddings, with those of their positions where these are learned.
pub(super) fn embed(model: Model<'_>, batch: &Batch, x: &mut [f32]) {
    let spec = model.spec;
    embedding::gather(model.cpu, model.embedding(), spec.vocab, spec.hidden, &batch.tokens, x);
    if spec.family.traits().positions == Positions::Learned {
        let weight = model.weights.matrix(model.layout.positions(), spec.hidden);
        embedding::gather_add(model.cpu, weight, spec.max_context, spec.hidden, &batch.positions, x);
    }
}

/// One block on the residual stream `x [rows, hidden]`, in place.
pub(super) fn forward(
    model: Model<'_>,
    layer: usize,
    batch: &Batch,
    memory: &mut Memory<'_>,
    x: &mut [f32],
    a: &mut Activations<'_>,
) {
    if let Some((before_attention, _)) = &mut a.residuals {
        before_attention.copy_from_slice(x);
    }
    norm::forward(model, Place::Input(layer), x, a.norm, a.input_rstd);
    project(model, layer, batch, a);
    if model.spec.family.traits().positions == Positions::Rotary {
        rope::rotate(model.cpu, model.rope, &batch.positions, Direction::Forward, a.q);
        rope::rotate(model.cpu, model.rope, &batch.positions, Direction::Forward, a.k);
    }
    attend(model, layer, batch, memory, a);
    add_projection(model, layer, batch, (Part::Output, a.attended), x, a.low_rank);

    if let Some((_, before_mlp)) = &mut a.residuals {
        before_mlp.copy_from_slice(x);
    }
    norm::forward(model, Place::Mlp(layer), x, a.norm, a.mlp_rstd);
    widen(model, layer, batch, a);
    add_projection(model, layer, batch, (Part::Down, a.product), x, a.low_rank);
}

/// Queries, keys and values of the rows, with the family's biases and norms, not yet turned.
fn project(model: Model<'_>, layer: usize, batch: &Batch, a: &mut Activations<'_>) {
    let (cpu, spec) = (model.cpu, model.spec);
    let (wide, narrow) = model.widths();
    let normed = spec.family.traits().head_norms;
    let (q, k) = if normed { (&mut *a.raw.q, &mut *a.raw.k) } else { (&mut *a.q, &mut *a.k) };
    let mut projections = [
        Projection { weight: model.matrix(layer, Part::Query, spec.hidden), out: wide, y: &mut *q },
        Projection { weight: model.matrix(layer, Part::Key, spec.hidden), out: narrow, y: &mut *k },
        Projection { weight: model.matrix(layer, Part::Value, spec.hidden), out: narrow, y: &mut *a.v },
    ];
    linear::forward(cpu, a.norm, spec.hidden, Output::Set, &mut projections);
    let own = [(Part::Query, Part::QueryBias, q), (Part::Key, Part::KeyBias, k), (Part::Value, Part::ValueBias, &mut *a.v)];
    for (part, bias, y) in own {
        lora::drop_inputs(model, (layer, part), batch, a.norm, y, a.low_rank);
        add_bias(model, layer, bias, y);
    }
    if normed {
        let (raw, eps) = (&mut a.raw, spec.norm_eps);
        rmsnorm::forward(cpu, raw.q, model.vector(layer, Part::QueryNorm), eps, a.q, raw.q_rstd);
        rmsnorm::forward(cpu, raw.k, model.vector(layer, Part::KeyNorm), eps, a.k, raw.k_rstd);
    }
}

/// What the MLP's last projection reads.
fn widen(model: Model<'_>, layer: usize, batch: &Batch, a: &mut Activations<'_>) {
    let (cpu, spec) = (model.cpu, model.spec);
    let up = Projection { weight: model.matrix(layer, Part::Up, spec.hidden), out: spec.intermediate, y: &mut *a.up };
    match spec.family.traits().mlp {
        Mlp::SwiGlu => {
            let weight = model.matrix(layer, Part::Gate, spec.hidden);
            let gate = Projection { weight, out: spec.intermediate, y: &mut *a.gate };
            linear::forward(cpu, a.norm, spec.hidden, Output::Set, &mut [gate, up]);
            lora::drop_inputs(model, (layer, Part::Gate), batch, a.norm, a.gate, a.low_rank);
            lora::drop_inputs(model, (layer, Part::Up), batch, a.norm, a.up, a.low_rank);
            swiglu::forward(cpu, a.gate, a.up, a.product);
        }
        Mlp::Gelu => {
            linear::forward(cpu, a.norm, spec.hidden, Output::Set, &mut [up]);
            add_bias(model, layer, Part::UpBias, a.up);
            gelu::forward(cpu, a.up, a.product);
        }
    }
}

/// Adds a projection of `input` to the residual stream, then its bias.
fn add_projection(
    model: Model<'_>,
    layer: usize,
    batch: &Batch,
    (part, input): (Part, &[f32]),
    x: &mut [f32],
    space: &mut LowRank,
) {
    let hidden = model.spec.hidden;
    let (inner, bias) = match part {
        Part::Output => (model.widths().0, Part::OutputBias),
        _ => (model.spec.intermediate, Part::DownBias),
    };
    let weight = model.matrix(layer, part, inner);
    linear::forward(model.cpu, input, inner, Output::Add, &mut [Projection { weight, out: hidden, y: &mut *x }]);
    lora::drop_inputs(model, (layer, part), batch, input, x, space);
    add_bias(model, layer, bias, x);
}

/// Adds a projection's bias, where the family has one.
fn add_bias(model: Model<'_>, layer: usize, part: Part, y: &mut [f32]) {
    let bias = model.vector(layer, part);
    if !bias.is_empty() {
        bias::forward(model.cpu, bias, y);
    }
}

/// Writes the new keys and values, then attends to all up to each row.
fn attend(model: Model<'_>, layer: usize, batch: &Batch, memory: &mut Memory<'_>, a: &mut Activations<'_>) {
    let heads = model.heads();
    let (wide, narrow) = model.widths();
    let page = heads.page_len();
    memory.reserve(page, &batch.runs);
    let rows = |first: usize, rows: usize| (&a.k[first * narrow..][..rows * narrow], &a.v[first * narrow..][..rows * narrow]);
    if batch.runs.iter().any(|run| run.prefix.is_some()) {
        let shared = |(run, pages): (&Run, _)| {
            let (k, v) = run.prefix.map_or_else(Default::default, |first| rows(first, run.start));
            Append { k, v, start: 0, pages }
        };
        let pages = memory.write(layer, page, &batch.runs, |_| 0);
        attention::append(model.cpu, heads, &mut batch.runs.iter().zip(pages).map(shared).collect::<Vec<_>>());
    }
    let own = |(run, pages): (&Run, _)| {
        let (k, v) = rows(run.row, run.rows);
        Append { k, v, start: run.start, pages }
    };
    let pages = memory.write(layer, page, &batch.runs, |run| run.start);
    attention::append(model.cpu, heads, &mut batch.runs.iter().zip(pages).map(own).collect::<Vec<_>>());

    let mut rest = &mut *a.attended;
    let mut spans = Vec::with_capacity(batch.runs.len());
    for (run, pages) in batch.runs.iter().zip(memory.read(layer, page, &batch.runs)) {
        let (out, others) = rest.split_at_mut(run.rows * wide);
        rest = others;
        spans.push(Span { q: &a.q[run.row * wide..][..run.rows * wide], start: run.start, pages, out });
    }
    attention::forward(model.cpu, heads, &mut spans);
}
