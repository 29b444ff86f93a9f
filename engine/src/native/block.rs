//! The forward pass through the blocks: rows of any sequences together, each at its own position.
//!
//! This one function serves prefill, decode and training, which is why they agree to the bit (B1).
use super::layout::{Layout, Part};
use super::weights::Weights;
use cohort_kernels::attention::{self, Append, Heads, PAGE, Span};
use cohort_kernels::linear::{self, Matrix, Output, Projection};
use cohort_kernels::rope::{self, Direction, RopeTable};
use cohort_kernels::{Buffer, Cpu, Format, embedding, rmsnorm, swiglu};
use cohort_model::DecoderSpec;
use std::sync::Arc;

/// What the blocks are made of.
#[derive(Clone, Copy)]
pub(super) struct Model<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) spec: &'a DecoderSpec,
    pub(super) layout: &'a Layout,
    pub(super) weights: &'a Weights,
    pub(super) rope: &'a RopeTable,
}

impl<'a> Model<'a> {
    pub(super) fn heads(&self) -> Heads {
        heads(self.spec)
    }

    /// A block's vector.
    pub(super) fn vector(&self, layer: usize, part: Part) -> &'a [f32] {
        self.weights.vector(self.layout.block(layer, part))
    }

    /// A block's matrix with `inner` columns.
    pub(super) fn matrix(&self, layer: usize, part: Part, inner: usize) -> Matrix<'a> {
        self.weights.matrix(self.layout.block(layer, part), inner)
    }

    /// `[vocab, hidden]`
    pub(super) fn embedding(&self) -> Matrix<'a> {
        self.weights.matrix(self.layout.embedding(), self.spec.hidden)
    }

    /// The output projection. `[vocab, hidden]`
    pub(super) fn head(&self) -> Matrix<'a> {
        self.weights.matrix(self.layout.head(), self.spec.hidden)
    }

    /// Format of the products.
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
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { tokens: Vec::new(), positions: Vec::new(), runs: Vec::new() }
    }

    /// Adds tokens of one sequence from a position on. `prefix`: see [`Run::prefix`].
    pub(super) fn push(&mut self, tokens: &[u32], start: usize, prefix: Option<usize>) {
        self.runs.push(Run { row: self.tokens.len(), rows: tokens.len(), start, prefix });
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((start..start + tokens.len()).map(|p| p as u32));
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
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) attended: &'a mut [f32],
    pub(super) mlp_rstd: &'a mut [f32],
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    pub(super) product: &'a mut [f32],
    /// The residual stream before attention and before the MLP, where the backward pass wants it.
    pub(super) residuals: Option<(&'a mut [f32], &'a mut [f32])>,
}

/// `x [rows, hidden]`: the tokens' embeddings.
pub(super) fn embed(model: Model<'_>, batch: &Batch, x: &mut [f32]) {
    embedding::gather(model.cpu, model.embedding(), model.spec.vocab, model.spec.hidden, &batch.tokens, x);
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
    let (cpu, spec) = (model.cpu, model.spec);
    let (hidden, eps) = (spec.hidden, spec.norm_eps);
    let (wide, narrow) = model.widths();
    if let Some((before_attention, _)) = &mut a.residuals {
        before_attention.copy_from_slice(x);
    }
    rmsnorm::forward(cpu, x, model.vector(layer, Part::InputNorm), eps, a.norm, a.input_rstd);
    let mut projections = [
        Projection { weight: model.matrix(layer, Part::Query, hidden), out: wide, y: &mut *a.q },
        Projection { weight: model.matrix(layer, Part::Key, hidden), out: narrow, y: &mut *a.k },
        Projection { weight: model.matrix(layer, Part::Value, hidden), out: narrow, y: &mut *a.v },
    ];
    linear::forward(cpu, a.norm, hidden, Output::Set, &mut projections);
    rope::rotate(cpu, model.rope, &batch.positions, Direction::Forward, a.q);
    rope::rotate(cpu, model.rope, &batch.positions, Direction::Forward, a.k);
    attend(model, layer, batch, memory, a);
    let weight = model.matrix(layer, Part::Output, wide);
    linear::forward(cpu, a.attended, wide, Output::Add, &mut [Projection { weight, out: hidden, y: &mut *x }]);

    if let Some((_, before_mlp)) = &mut a.residuals {
        before_mlp.copy_from_slice(x);
    }
    rmsnorm::forward(cpu, x, model.vector(layer, Part::MlpNorm), eps, a.norm, a.mlp_rstd);
    let mut projections = [
        Projection { weight: model.matrix(layer, Part::Gate, hidden), out: spec.intermediate, y: &mut *a.gate },
        Projection { weight: model.matrix(layer, Part::Up, hidden), out: spec.intermediate, y: &mut *a.up },
    ];
    linear::forward(cpu, a.norm, hidden, Output::Set, &mut projections);
    swiglu::forward(cpu, a.gate, a.up, a.product);
    let weight = model.matrix(layer, Part::Down, spec.intermediate);
    linear::forward(cpu, a.product, spec.intermediate, Output::Add, &mut [Projection { weight, out: hidden, y: x }]);
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
