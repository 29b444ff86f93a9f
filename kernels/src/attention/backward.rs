//! Gradients: probabilities are computed again, for 16 positions at a time.
use super::forward::{Block, probabilities};
use super::pages::{Append, write};
use super::{Heads, PAGE};
use crate::lanes;
use crate::path::kernel;
use crate::pool::Disjoint;
use crate::tile::{self, Format, MAX_ROWS, Store, Tile};
use crate::{Cpu, Path, scratch};

/// Query positions whose probabilities stand in memory together.
const POSITIONS: usize = 16;

/// Rows of one sequence: all of them, or those behind a beginning that it shares with the first span of its family.
pub struct BackwardSpan<'a> {
    /// Positions before the first row. Their keys and values are the first ones of the family's first span, where this is 0.
    pub prefix: usize,
    /// The forward's queries. `[rows, query * dim]`
    pub q: &'a [f32],
    /// The forward's keys. `[rows, key_value * dim]`
    pub k: &'a [f32],
    /// The forward's values. `[rows, key_value * dim]`
    pub v: &'a [f32],
    /// The forward's result. `[rows, query * dim]`
    pub out: &'a [f32],
    /// dL/dout. `[rows, query * dim]`
    pub d_out: &'a [f32],
    /// Receives dL/dq. `[rows, query * dim]`
    pub dq: &'a mut [f32],
    /// Receives dL/dk. `[rows, key_value * dim]`
    pub dk: &'a mut [f32],
    /// Receives dL/dv. `[rows, key_value * dim]`
    pub dv: &'a mut [f32],
}

/// Gradients of every span of every family. What a family shares stands once: its gradients are one chain over the rows of
/// all spans in order.
///
/// # Panics
/// When a length does not fit, or a prefix is longer than the family's first span.
pub fn backward(cpu: &Cpu, heads: Heads, families: &mut [Vec<BackwardSpan<'_>>]) {
    let (wide, narrow) = (heads.query * heads.dim, heads.key_value * heads.dim);
    let jobs: Vec<Vec<_>> = families
        .iter_mut()
        .map(|spans| {
            let shared = spans.first().map_or(0, |s| s.q.len() / wide);
            let fits = spans.iter().enumerate().all(|(i, s)| s.prefix <= if i == 0 { 0 } else { shared });
            assert!(fits, "a prefix of the family's first {shared} rows");
            spans.iter_mut().map(|s| job(s, wide, narrow)).collect()
        })
        .collect();
    cpu.pool().run(jobs.len() * heads.key_value, |task| {
        HeadWork { path: cpu.path(), heads, head: task % heads.key_value, family: &jobs[task / heads.key_value] }.run();
    });
}

fn job<'a>(s: &'a mut BackwardSpan<'_>, wide: usize, narrow: usize) -> (Input<'a>, Outputs<'a>) {
    let rows = s.q.len() / wide;
    assert!([s.q, s.out, s.d_out, s.dq].iter().all(|x| x.len() == rows * wide), "{rows} rows of {wide}");
    assert!([s.k, s.v, s.dk, s.dv].iter().all(|x| x.len() == rows * narrow), "{rows} rows of {narrow}");
    let input = Input { q: s.q, k: s.k, v: s.v, out: s.out, d_out: s.d_out, rows, prefix: s.prefix };
    (input, Outputs { dq: Disjoint::new(s.dq), dk: Disjoint::new(s.dk), dv: Disjoint::new(s.dv) })
}

struct Input<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    d_out: &'a [f32],
    rows: usize,
    prefix: usize,
}

/// One key/value head of one family.
struct HeadWork<'a> {
    path: Path,
    heads: Heads,
    head: usize,
    family: &'a [(Input<'a>, Outputs<'a>)],
}

/// Gradients of one sequence, whose heads are different tasks'.
struct Outputs<'a> {
    dq: Disjoint<'a, f32>,
    dk: Disjoint<'a, f32>,
    dv: Disjoint<'a, f32>,
}

impl HeadWork<'_> {
    /// This task's heads alone: one key/value head and its group.
    fn own(&self) -> Heads {
        Heads { query: self.heads.group(), key_value: 1, dim: self.heads.dim }
    }

    fn run(&self) {
        let Some((first, rest)) = self.family.split_first() else { return };
        let stride = self.own().stride();
        scratch::with(2 * first.0.rows * stride, |sums| {
            sums.fill(0.0);
            let (dk, dv) = sums.split_at_mut(first.0.rows * stride);
            self.span(first, dk, dv);
            for member in rest {
                self.member(member, stride, dk, dv);
            }
            self.store(&first.1.dk, dk);
            self.store(&first.1.dv, dv);
        });
    }

    /// A span behind a shared beginning, whose sums go on.
    fn member(&self, member: &(Input<'_>, Outputs<'_>), stride: usize, dk: &mut [f32], dv: &mut [f32]) {
        let (shared, all) = (member.0.prefix * stride, (member.0.prefix + member.0.rows) * stride);
        scratch::with(2 * all, |sums| {
            let (own_dk, own_dv) = sums.split_at_mut(all);
            for (own, common) in [(&mut *own_dk, &*dk), (&mut *own_dv, &*dv)] {
                own[..shared].copy_from_slice(&common[..shared]);
                own[shared..].fill(0.0);
            }
            self.span(member, own_dk, own_dv);
            for (own, common, target) in [(own_dk, dk, &member.1.dk), (own_dv, dv, &member.1.dv)] {
                common[..shared].copy_from_slice(&own[..shared]);
                self.store(target, &own[shared..]);
            }
        });
    }

    /// All rows of a span; `dk`, `dv` from position 0. `[prefix + rows, stride]`
    fn span(&self, (input, outputs): &(Input<'_>, Outputs<'_>), dk: &mut [f32], dv: &mut [f32]) {
        let (own, end) = (self.own(), input.prefix + input.rows);
        let page = own.page_len();
        let paged = Heads::pages(end) * page;
        scratch::with(2 * paged, |pages| {
            pages.fill(0.0);
            let (forward, swapped) = pages.split_at_mut(paged);
            let first = &self.family[0].0;
            self.fill_pages((first.k, first.v), 0, input.prefix, forward, swapped);
            self.fill_pages((input.k, input.v), input.prefix, input.rows, forward, swapped);
            let forward: Vec<&[f32]> = forward.chunks_exact(page).collect();
            let swapped: Vec<&[f32]> = swapped.chunks_exact(page).collect();
            for start in (input.prefix..end).step_by(POSITIONS) {
                let positions = POSITIONS.min(end - start);
                let block = |pages| Block { path: self.path, heads: own, pages, head: 0, start, positions, group: own.query };
                self.positions(input, &block(&forward[..]), &block(&swapped[..]), &outputs.dq, dk, dv);
            }
        });
    }

    /// Pages of (keys, values), and of (values, keys): both are needed side by side and row by row.
    fn fill_pages(&self, (k, v): (&[f32], &[f32]), start: usize, rows: usize, forward: &mut [f32], swapped: &mut [f32]) {
        let (own, dim) = (self.own(), self.heads.dim);
        let width = self.heads.key_value * dim;
        scratch::with(2 * rows * dim, |memory| {
            let (own_k, own_v) = memory.split_at_mut(rows * dim);
            for (dense, all) in [(&mut *own_k, k), (&mut *own_v, v)] {
                for (row, all) in dense.chunks_exact_mut(dim).zip(all.chunks_exact(width)) {
                    row.copy_from_slice(&all[self.head * dim..][..dim]);
                }
            }
            let page = own.page_len();
            let pages = |all| <[f32]>::chunks_exact_mut(all, page).skip(start / PAGE).collect();
            write(own, &mut Append { k: own_k, v: own_v, start, pages: pages(forward) });
            write(own, &mut Append { k: own_v, v: own_k, start, pages: pages(swapped) });
        });
    }

    /// Some query positions: their dq, and their terms of dk and dv.
    fn positions(
        &self,
        input: &Input<'_>,
        keys: &Block<'_>,
        values: &Block<'_>,
        dq: &Disjoint<'_, f32>,
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let (stride, len) = (keys.heads.stride(), keys.row_len());
        let rows = keys.positions * keys.group;
        scratch::with(rows * (3 * stride + 2 * len + 1), |memory| {
            let (q, rest) = memory.split_at_mut(rows * stride);
            let (d_out, rest) = rest.split_at_mut(rows * stride);
            let (d_query, rest) = rest.split_at_mut(rows * stride);
            let (p, rest) = rest.split_at_mut(rows * len);
            let (ds, deltas) = rest.split_at_mut(rows * len);
            self.load(input, keys, q, d_out, deltas);
            for row in (0..rows).step_by(MAX_ROWS) {
                let count = MAX_ROWS.min(rows - row);
                let (lines, scores) = (row * stride..(row + count) * stride, row * len..(row + count) * len);
                keys.scores(&q[lines.clone()], stride, &mut p[scores.clone()]);
                values.scores(&d_out[lines.clone()], stride, &mut ds[scores.clone()]);
                let each = p[scores.clone()].chunks_exact_mut(len).zip(ds[scores.clone()].chunks_exact_mut(len));
                for (index, (p, ds)) in each.enumerate() {
                    let seen = keys.start + (row + index) / keys.group + 1;
                    probabilities(self.path, p, seen, keys.heads.scale());
                    score_gradients(self.path, p, ds, seen, deltas[row + index], keys.heads.scale());
                }
                // The swapped pages hold keys where values were: dq = ds K.
                values.values(&ds[scores], count, &mut d_query[lines]);
            }
            for (row, values) in d_query.chunks_exact(stride).enumerate() {
                let (position, column) = self.place(input, keys, row);
                // SAFETY: a task alone writes these heads.
                let dq = unsafe { dq.slice(position * self.heads.query * self.heads.dim + column, self.heads.dim) };
                dq.copy_from_slice(&values[..self.heads.dim]);
            }
            add_products(self.path, ds, len, q, stride, keys.keys(), dk);
            add_products(self.path, p, len, d_out, stride, keys.keys(), dv);
        });
    }

    /// The span's row and first column of a block's row.
    fn place(&self, input: &Input<'_>, block: &Block<'_>, row: usize) -> (usize, usize) {
        (block.start - input.prefix + row / block.group, (self.head * block.group + row % block.group) * self.heads.dim)
    }

    /// Dense queries and output gradients, and `delta = dout . out` of each row.
    fn load(&self, input: &Input<'_>, block: &Block<'_>, q: &mut [f32], d_out: &mut [f32], deltas: &mut [f32]) {
        let (dim, stride) = (self.heads.dim, block.heads.stride());
        let lines = q.chunks_exact_mut(stride).zip(d_out.chunks_exact_mut(stride)).zip(deltas);
        for (row, ((q, d_out), delta)) in lines.enumerate() {
            let (position, column) = self.place(input, block, row);
            let from = position * self.heads.query * dim + column;
            q[..dim].copy_from_slice(&input.q[from..from + dim]);
            d_out[..dim].copy_from_slice(&input.d_out[from..from + dim]);
            q[dim..].fill(0.0);
            d_out[dim..].fill(0.0);
            *delta = dot(self.path, &d_out[..dim], &input.out[from..from + dim]);
        }
    }

    /// Sums `[rows, stride]` to this head's columns.
    fn store(&self, target: &Disjoint<'_, f32>, sums: &[f32]) {
        let (own, dim) = (self.own(), self.heads.dim);
        for (row, values) in sums.chunks_exact(own.stride()).enumerate() {
            // SAFETY: a task alone writes this head's columns.
            let target = unsafe { target.slice((row * self.heads.key_value + self.head) * dim, dim) };
            target.copy_from_slice(&values[..dim]);
        }
    }
}

/// `sums [keys, stride] += weights^T lines` for `weights [rows, len]`, `lines [rows, stride]`: each element's chain goes
/// on over the rows.
fn add_products(path: Path, weights: &[f32], len: usize, lines: &[f32], stride: usize, keys: usize, sums: &mut [f32]) {
    let rows = lines.len() / stride;
    assert!(weights.len() >= rows * len && keys <= len && sums.len() >= keys * stride);
    for key in (0..keys).step_by(MAX_ROWS) {
        let count = MAX_ROWS.min(keys - key);
        for vec in (0..stride / 16).step_by(4) {
            let (a, b) = (weights[key..].as_ptr(), lines[vec * 16..].as_ptr());
            let c = sums[key * stride + vec * 16..].as_mut_ptr();
            let tile = Tile { k: rows, a, a_row: 1, a_k: len, b, b_k: stride, b_vec: 16, c, c_row: stride, c_vec: 16 };
            // SAFETY: `rows` rows of `len` weights, of which `key + count` are read; `rows` lines and `count` sums of
            // `stride`; the vectors lie below `stride`.
            unsafe { tile::run(path, Format::F32, count, (stride / 16 - vec).min(4), Store::Chain, &tile) };
        }
    }
}

kernel! {
    /// `ds = p * (dp - delta) * scale` in place of `dp`; zero for keys out of sight.
    fn score_gradients(p: &[f32], dp: &mut [f32], seen: usize, delta: f32, scale: f32) {
        let (own, others) = dp.split_at_mut(seen);
        others.fill(0.0);
        for (ds, p) in own.iter_mut().zip(p) {
            *ds = p * (*ds - delta) * scale;
        }
    }
}

kernel! {
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        lanes::dot(x, y)
    }
}
