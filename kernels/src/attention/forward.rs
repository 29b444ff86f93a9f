//! Tiles of up to 8 query rows: the heads that share a key/value head, at one or a few positions.
use super::{Heads, PAGE};
use crate::lanes::{block, blocks, each, larger, max, splat, sum};
use crate::math::{exp, exp16};
use crate::path::kernel;
use crate::pool::Disjoint;
use crate::tile::{self, Format, MAX_ROWS, Store, Tile};
use crate::{Cpu, Path, scratch};

/// Positions of a task.
const POSITIONS: usize = 32;

/// Query rows of one sequence.
pub struct Span<'a> {
    /// Queries, already turned by their position. `[rows, query * dim]`
    pub q: &'a [f32],
    /// Position of the first row.
    pub start: usize,
    /// The sequence's pages of this layer, from position 0 to the last row's.
    pub pages: Vec<&'a [f32]>,
    /// The result. `[rows, query * dim]`
    pub out: &'a mut [f32],
}

/// Attention of every row of every span.
///
/// # Panics
/// When a page is missing or a length does not fit.
pub fn forward(cpu: &Cpu, heads: Heads, spans: &mut [Span<'_>]) {
    let width = heads.query * heads.dim;
    let mut parts = Vec::new();
    let spans: Vec<_> = spans
        .iter_mut()
        .enumerate()
        .map(|(index, span)| {
            let rows = span.q.len() / width;
            assert_eq!((span.q.len(), span.out.len()), (rows * width, rows * width), "rows of {width}");
            assert!(span.pages.len() >= Heads::pages(span.start + rows), "{} pages", span.pages.len());
            parts.extend((0..rows).step_by(POSITIONS).map(|first| (index, first..(first + POSITIONS).min(rows))));
            (span.q, span.start, &span.pages, Disjoint::new(span.out))
        })
        .collect();
    // Head by head: the keys and values of one, which samples of a group share, stay near while all of them are served.
    cpu.pool().run(parts.len() * heads.key_value, |task| {
        let (head, (index, rows)) = (task / parts.len(), &parts[task % parts.len()]);
        let (q, start, pages, out) = &spans[*index];
        let per_tile = (6 / heads.group()).max(1);
        for first in rows.clone().step_by(per_tile) {
            let positions = per_tile.min(rows.end - first);
            // Heads of a group go in tiles of at most 8 rows.
            for g in (0..heads.group()).step_by(MAX_ROWS) {
                let count = MAX_ROWS.min(heads.group() - g);
                let block = Block { path: cpu.path(), heads, pages, head, start: start + first, positions, group: count };
                let column = (head * heads.group() + g) * heads.dim;
                block.attend(&q[first * width..], column, width, |row, values| {
                    // SAFETY: a task alone writes these heads of these rows.
                    let out = unsafe { out.slice((first + row / count) * width + column + row % count * heads.dim, heads.dim) };
                    out.copy_from_slice(values);
                });
            }
        }
    });
}

/// Some positions times some heads of one group.
pub(super) struct Block<'a> {
    pub(super) path: Path,
    pub(super) heads: Heads,
    pub(super) pages: &'a [&'a [f32]],
    /// The key/value head.
    pub(super) head: usize,
    /// First position.
    pub(super) start: usize,
    pub(super) positions: usize,
    /// Heads per position: rows are ordered by position, then head.
    pub(super) group: usize,
}

impl Block<'_> {
    /// Keys that the last row sees.
    pub(super) fn keys(&self) -> usize {
        self.start + self.positions
    }

    /// Scores' row length: whole pages.
    pub(super) fn row_len(&self) -> usize {
        self.keys().next_multiple_of(PAGE)
    }

    fn attend(&self, q: &[f32], column: usize, width: usize, mut write: impl FnMut(usize, &[f32])) {
        let rows = self.positions * self.group;
        let (dim, stride, len) = (self.heads.dim, self.heads.stride(), self.row_len());
        scratch::with(rows * (dim + stride + len), |memory| {
            let (queries, rest) = memory.split_at_mut(rows * dim);
            let (out, scores) = rest.split_at_mut(rows * stride);
            for (row, query) in queries.chunks_exact_mut(dim).enumerate() {
                query.copy_from_slice(&q[row / self.group * width + column + row % self.group * dim..][..dim]);
            }
            self.scores(queries, dim, scores);
            let mut inverses = [0.0; MAX_ROWS];
            for (row, scores) in scores.chunks_exact_mut(len).enumerate() {
                let seen = self.start + row / self.group + 1;
                inverses[row] = 1.0 / softmax(self.path, scores, seen, self.heads.scale());
            }
            self.values(scores, rows, out);
            for (row, values) in out.chunks_exact_mut(stride).enumerate() {
                // A zero becomes +0 whatever its sign (A2).
                values.iter_mut().for_each(|v| *v = *v * inverses[row] + 0.0);
                write(row, &values[..dim]);
            }
        });
    }

    /// Raw scores of dense `queries [rows, stride]` against all keys in sight; rows of [`Block::row_len`].
    pub(super) fn scores(&self, queries: &[f32], stride: usize, scores: &mut [f32]) {
        let (dim, len, keys) = (self.heads.dim, self.row_len(), self.keys());
        let rows = queries.len() / stride;
        assert!(rows <= MAX_ROWS && stride >= dim && scores.len() >= rows * len);
        for (index, page) in self.pages.iter().enumerate().take(Heads::pages(keys)) {
            let blocks = (keys - index * PAGE).min(PAGE).div_ceil(16);
            let a = queries.as_ptr();
            let b = self.heads.head(page, self.head).0.as_ptr();
            let c = scores[index * PAGE..].as_mut_ptr();
            let tile = Tile { k: dim, a, a_row: stride, a_k: 1, b, b_k: 16, b_vec: 16 * dim, c, c_row: len, c_vec: 16 };
            // SAFETY: `rows` queries of `dim`; `blocks` (at most 4) blocks of [dim][16] keys; rows of `len` scores, of
            // which this page's 64 lie inside.
            unsafe { tile::run(self.path, Format::F32, rows, blocks, Store::Set, &tile) };
        }
    }

    /// `out [rows, stride] = weights V`, one chain over the keys in sight.
    pub(super) fn values(&self, weights: &[f32], rows: usize, out: &mut [f32]) {
        let (stride, len, keys) = (self.heads.stride(), self.row_len(), self.keys());
        assert!(rows <= MAX_ROWS && weights.len() >= rows * len && out.len() >= rows * stride);
        for (index, page) in self.pages.iter().enumerate().take(Heads::pages(keys)) {
            let store = if index == 0 { Store::Set } else { Store::Chain };
            let k = (keys - index * PAGE).min(PAGE);
            let values = self.heads.head(page, self.head).1;
            for vec in (0..stride / 16).step_by(4) {
                let a = weights[index * PAGE..].as_ptr();
                let b = values[vec * 16..].as_ptr();
                let c = out[vec * 16..].as_mut_ptr();
                let tile = Tile { k, a, a_row: len, a_k: 1, b, b_k: stride, b_vec: 16, c, c_row: stride, c_vec: 16 };
                // SAFETY: rows of `len` weights; `k` rows of `stride` values; rows of `stride` outputs; the vectors lie
                // below `stride`.
                unsafe { tile::run(self.path, Format::F32, rows, (stride / 16 - vec).min(4), store, &tile) };
            }
        }
    }
}

kernel! {
    /// Turns raw scores into `e^(scale * score - max)` for the first `seen` keys and zero behind; returns the sum.
    fn softmax(scores: &mut [f32], seen: usize, scale: f32) -> f32 {
        exponentials(scores, seen, scale)
    }
}

kernel! {
    /// As [`softmax`], times the reciprocal of the sum: the probabilities.
    pub(super) fn probabilities(scores: &mut [f32], seen: usize, scale: f32) {
        let inverse = 1.0 / exponentials(scores, seen, scale);
        for v in &mut scores[..seen] {
            *v *= inverse;
        }
    }
}

#[inline(always)]
fn exponentials(scores: &mut [f32], seen: usize, scale: f32) -> f32 {
    let (own, others) = scores.split_at_mut(seen);
    others.fill(0.0);
    let mut largest = splat(f32::NEG_INFINITY);
    for index in 0..blocks(seen) {
        let v = block(own, index, f32::NEG_INFINITY);
        largest = each(|i| larger(largest[i], v[i] * scale));
    }
    let largest = max(largest);
    let mut sums = splat(0.0);
    let (full, tail) = own.as_chunks_mut::<16>();
    for v in full {
        *v = exp16(each(|i| v[i] * scale - largest));
        sums = each(|i| sums[i] + v[i]);
    }
    for (v, sum) in tail.iter_mut().zip(&mut sums) {
        *v = exp(*v * scale - largest);
        *sum += *v;
    }
    sum(sums)
}
