//! Our kernels as custom operations: what CUDA runs. On the CPU each is computed by its twin of the native engine, so that
//! shapes, gradients and what is kept for the way back are tested without a GPU.
//!
//! Files: `run` operands, results, nodes of candle's graph; `indices` whole numbers on the device; the others an operation each.
mod attention;
mod indices;
mod logprob;
mod norm;
mod rope;
mod run;
mod swiglu;

use super::form::{Form, Operations, Pass};
use super::place::Place;
use candle_core::{Device, Result, Tensor};
use cohort_kernels::attention::Heads;
use cohort_kernels::attention::cuda::Plan;
use cohort_kernels::rope::{Direction, RopeTable};
use cohort_model::DecoderSpec;
use indices::Indices;
use run::Node;
use std::sync::Arc;

pub(super) use cohort_kernels::attention::cuda::MAX_DIM as MAX_HEAD_DIM;

/// Tables and numbers of a model.
pub(super) struct Fused {
    place: Arc<Place>,
    device: Device,
    heads: Heads,
    eps: f32,
    turns: Arc<rope::Turns>,
}

impl Fused {
    /// Whether the kernels take a model.
    pub(super) fn fits(spec: &DecoderSpec) -> bool {
        spec.head_dim <= MAX_HEAD_DIM
    }

    pub(super) fn new(spec: &DecoderSpec, device: &Device, place: &Arc<Place>) -> Result<Self> {
        let heads = Heads { query: spec.heads, key_value: spec.kv_heads, dim: spec.head_dim };
        let mut table = RopeTable::new(spec.head_dim, spec.rope_theta);
        table.reserve(spec.max_context);
        let values = Tensor::new(table.turns(), device)?;
        let turns = Arc::new(rope::Turns { table, values, head_dim: spec.head_dim });
        Ok(Self { place: place.clone(), device: device.clone(), heads, eps: spec.norm_eps, turns })
    }
}

impl Form for Fused {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn pass<'a>(&'a self, pass: &Arc<Pass>) -> Result<Box<dyn Operations + 'a>> {
        let plan = Arc::new(if pass.packed {
            Plan::packed(pass.items.iter().map(|item| item.new))
        } else {
            let sequences = pass.items.iter().zip(&pass.tables);
            Plan::cached(sequences.map(|(item, table)| (item.past, item.new, &table[..])), pass.page)
        });
        let (positions, written) = (pass.positions(), if pass.packed { Vec::new() } else { pass.written() });
        let lists = Indices::new([&positions, &written, &plan.spans, &plan.tables], &self.device)?;
        Ok(Box::new(Rows {
            form: self,
            positions: lists.pick([0]),
            written: lists.pick([0, 1]),
            tables: lists.pick([2, 3, 0]),
            pass: pass.clone(),
            plan,
        }))
    }

    fn score(&self, logits: &Tensor, tokens: &[u32], temperatures: &[f32]) -> Result<(Tensor, Tensor)> {
        let operation = logprob::LogProb { tokens: Indices::new([tokens], &self.device)? };
        let temperatures = Tensor::new(temperatures, &self.device)?;
        let stats = logits.contiguous()?.apply_op2(&temperatures, Node::new(operation, &self.place))?; // [STATS, m]
        Ok((stats.get(0)?, stats.get(1)?))
    }
}

/// The rows of one pass.
struct Rows<'a> {
    form: &'a Fused,
    pass: Arc<Pass>,
    plan: Arc<Plan>,
    positions: Indices<1>,
    /// Positions, and where a store takes the rows: nowhere in a packed pass.
    written: Indices<2>,
    /// The plan's spans and tables, and the positions.
    tables: Indices<3>,
}

impl Operations for Rows<'_> {
    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op2(weight, Node::new(norm::Norm { eps: self.form.eps }, &self.form.place))
    }

    fn add_norm(&self, x: &Tensor, delta: &Tensor, weight: &Tensor) -> Result<(Tensor, Tensor)> {
        if self.pass.track {
            let sum = (x + delta)?;
            let norm = self.norm(&sum, weight)?;
            return Ok((sum, norm));
        }
        let [sum, norm] = run::run(&self.form.place, &norm::AddNorm { eps: self.form.eps }, [x, delta, weight])?;
        Ok((sum, norm))
    }

    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (turns, positions) = (self.form.turns.clone(), self.positions.clone());
        let operation = rope::Rotate { turns, positions, direction: Direction::Forward };
        x.contiguous()?.apply_op1(Node::new(operation, &self.form.place))
    }

    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.contiguous()?.apply_op2(&up.contiguous()?, Node::new(swiglu::SwiGlu, &self.form.place))
    }

    fn append(&self, store: &Tensor, key: &Tensor, value: &Tensor, turned: bool) -> Result<()> {
        if self.pass.packed {
            candle_core::bail!("a packed pass has no store");
        }
        let rows = &self.written;
        let turns = turned.then_some(&*self.form.turns);
        let operation = rope::Append { place: &self.form.place, turns, rows };
        store.inplace_op3(&key.contiguous()?, &value.contiguous()?, &operation)
    }

    fn attend(&self, query: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
        let (heads, pass, plan, tables) = (self.form.heads, self.pass.clone(), self.plan.clone(), self.tables.clone());
        let operation = Node::new(attention::Attention { heads, pass, plan, tables }, &self.form.place);
        query.contiguous()?.apply_op3(&keys.contiguous()?, &values.contiguous()?, operation)
    }
}
