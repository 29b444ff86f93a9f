//! Causal attention of packed sequences and of rows in a store.
use super::indices::Indices;
use super::run::{Compute, Differentiable, run};
use crate::candle::form::Pass;
use crate::candle::place::Place;
use candle_core::{Result, Shape, Tensor};
use cohort_kernels::Cpu;
use cohort_kernels::attention::cuda::Plan;
use cohort_kernels::attention::{self, Append, BackwardSpan, Heads, Span};
use std::sync::Arc;
#[cfg(feature = "cuda")]
use {
    candle_core::Error,
    candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut},
    cohort_kernels::attention::cuda::{self, Gradients, Sources, Tables, Upstream},
    cohort_kernels::cuda::Gpu,
};

/// `q, keys, values -> out`, with lse and working memory behind it.
#[derive(Clone)]
pub(super) struct Attention {
    pub(super) heads: Heads,
    pub(super) pass: Arc<Pass>,
    pub(super) plan: Arc<Plan>,
    /// The plan's spans and tables, and the rows' positions.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU's twin reads the pass itself"))]
    pub(super) tables: Indices<3>,
}

/// Keys and values of one sequence in the CPU's pages.
struct Paged(Vec<Vec<f32>>);

impl Paged {
    fn pages(&self) -> Vec<&[f32]> {
        self.0.iter().map(Vec::as_slice).collect()
    }
}

impl Attention {
    /// Widths of a row of queries, and of keys.
    fn widths(&self) -> (usize, usize) {
        (self.heads.query * self.heads.dim, self.heads.key_value * self.heads.dim)
    }

    /// The rows of a sequence, from their places in the source.
    fn gather(&self, sequence: usize, source: &[f32]) -> Vec<f32> {
        let (item, (_, width)) = (self.pass.items[sequence], self.widths());
        let row = |position| &source[self.pass.row(sequence, position) as usize * width..][..width];
        (0..item.past + item.new).flat_map(|position| row(position).iter().copied()).collect()
    }

    fn page(&self, cpu: &Cpu, k: &[f32], v: &[f32]) -> Paged {
        let positions = k.len() / self.widths().1;
        let mut pages = vec![vec![0.0; self.heads.page_len()]; Heads::pages(positions)];
        let pages_mut = pages.iter_mut().map(Vec::as_mut_slice).collect();
        attention::append(cpu, self.heads, &mut [Append { k, v, start: 0, pages: pages_mut }]);
        Paged(pages)
    }
}

impl Compute<3, 3> for Attention {
    const NAME: &'static str = "attention";

    fn outputs(&self, [q, ..]: [&Shape; 3]) -> [Shape; 3] {
        [q.clone(), (self.plan.rows(), self.heads.query).into(), self.plan.parts_len(self.heads).into()]
    }

    fn host(&self, cpu: &Cpu, [q, k, v]: [&[f32]; 3], [out, ..]: [&mut [f32]; 3]) -> Result<()> {
        let (wide, _) = self.widths();
        let sequences = 0..self.pass.items.len();
        let paged: Vec<_> = sequences.map(|s| self.page(cpu, &self.gather(s, k), &self.gather(s, v))).collect();
        let (mut q, mut out) = (q, out);
        let mut spans = Vec::new();
        for (item, paged) in self.pass.items.iter().zip(&paged) {
            let (own_q, rest_q) = q.split_at(item.new * wide);
            let (own_out, rest_out) = out.split_at_mut(item.new * wide);
            spans.push(Span { q: own_q, start: item.past, pages: paged.pages(), out: own_out });
            (q, out) = (rest_q, rest_out);
        }
        attention::forward(cpu, self.heads, &mut spans);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, [q, k, v]: [CudaView<'_, f32>; 3], outputs: [CudaViewMut<'_, f32>; 3]) -> Result<()> {
        let [mut out, mut lse, mut parts] = outputs;
        self.tables.on_gpu(|[spans, tables, positions]| {
            let tables = Tables { spans, tables, positions };
            let (plan, sources) = ((&*self.plan, &tables), Sources { q, k, v });
            cuda::forward(gpu, self.heads, plan, &sources, (&mut out, &mut lse), &mut parts).map_err(Error::wrap)
        })
    }
}

impl Differentiable<3, 3> for Attention {
    fn backward(
        &self,
        place: &Place,
        [q, k, v]: [&Tensor; 3],
        (out, kept): (&Tensor, &[Tensor]),
        up: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let Some(lse) = kept.first() else { candle_core::bail!("attention's way back without a forward") };
        let [dq, dk, dv, _] = run(place, &AttentionBackward(self.clone()), [q, k, v, out, lse, up])?;
        Ok([dq, dk, dv])
    }
}

/// `q, k, v, out, lse, d_out -> dq, dk, dv`, and working memory. Of a packed pass.
struct AttentionBackward(Attention);

impl Compute<6, 4> for AttentionBackward {
    const NAME: &'static str = "attention's way back";

    fn outputs(&self, [q, k, v, _, lse, _]: [&Shape; 6]) -> [Shape; 4] {
        [q.clone(), k.clone(), v.clone(), lse.clone()]
    }

    fn host(&self, cpu: &Cpu, inputs: [&[f32]; 6], [dq, dk, dv, _]: [&mut [f32]; 4]) -> Result<()> {
        let ([q, k, v, out, _, d_out], (wide, narrow)) = (inputs, self.0.widths());
        let (mut dq, mut dk, mut dv) = (dq, dk, dv);
        let (mut families, mut row) = (Vec::new(), 0);
        for item in &self.0.pass.items {
            let (w, n) = (row * wide..(row + item.new) * wide, row * narrow..(row + item.new) * narrow);
            let (own_dq, own_dk, own_dv);
            (own_dq, dq) = dq.split_at_mut(item.new * wide);
            (own_dk, dk) = dk.split_at_mut(item.new * narrow);
            (own_dv, dv) = dv.split_at_mut(item.new * narrow);
            families.push(vec![BackwardSpan {
                prefix: 0,
                q: &q[w.clone()],
                k: &k[n.clone()],
                v: &v[n],
                out: &out[w.clone()],
                d_out: &d_out[w],
                dq: own_dq,
                dk: own_dk,
                dv: own_dv,
            }]);
            row += item.new;
        }
        attention::backward(cpu, self.0.heads, &mut families);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, inputs: [CudaView<'_, f32>; 6], outputs: [CudaViewMut<'_, f32>; 4]) -> Result<()> {
        let ([q, k, v, out, lse, d_out], [dq, dk, dv, mut delta]) = (inputs, outputs);
        self.0.tables.on_gpu(|[spans, tables, positions]| {
            let tables = Tables { spans, tables, positions };
            let (plan, sources) = ((&*self.0.plan, &tables), Sources { q, k, v });
            let (upstream, mut gradients) = (Upstream { out, lse, d_out }, Gradients { dq, dk, dv });
            cuda::backward(gpu, self.0.heads, plan, &sources, &upstream, &mut gradients, &mut delta).map_err(Error::wrap)
        })
    }
}
