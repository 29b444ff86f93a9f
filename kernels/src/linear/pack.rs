//! Between canonical `[out, in]` and panels; activations regrouped for the weight gradient.
use super::PANEL;
use crate::{Buffer, Cpu};

/// Values that a packed `[out, in]` matrix takes.
#[must_use]
pub fn packed_len(out: usize, inner: usize) -> usize {
    out.div_ceil(PANEL) * PANEL * inner
}

/// Where element `(row, column)` of an `[out, in]` matrix lies.
#[must_use]
#[inline(always)]
pub fn packed_index(row: usize, column: usize, inner: usize) -> usize {
    (row / PANEL) * PANEL * inner + column * PANEL + row % PANEL
}

/// Packs a row-major `[out, in]` matrix into `packed_len` values.
///
/// # Panics
/// When a length does not fit the shape.
pub fn pack(cpu: &Cpu, canonical: &[f32], out: usize, inner: usize, packed: &mut [f32]) {
    assert_eq!((canonical.len(), packed.len()), (out * inner, packed_len(out, inner)), "pack {out} x {inner}");
    cpu.pool().parts(packed, PANEL * inner, |panel, part| {
        let rows = PANEL.min(out - panel * PANEL);
        let source = &canonical[panel * PANEL * inner..][..rows * inner];
        for (k, column) in part.chunks_exact_mut(PANEL).enumerate() {
            for (lane, value) in column.iter_mut().enumerate() {
                *value = if lane < rows { source[lane * inner + k] } else { 0.0 };
            }
        }
    });
}

/// The inverse of [`pack`].
///
/// # Panics
/// When a length does not fit the shape.
pub fn unpack(cpu: &Cpu, packed: &[f32], out: usize, inner: usize, canonical: &mut [f32]) {
    assert_eq!((canonical.len(), packed.len()), (out * inner, packed_len(out, inner)), "unpack {out} x {inner}");
    cpu.pool().parts(canonical, PANEL * inner, |panel, part| {
        let source = &packed[panel * PANEL * inner..][..PANEL * inner];
        for (lane, row) in part.chunks_exact_mut(inner).enumerate() {
            for (k, value) in row.iter_mut().enumerate() {
                *value = source[k * PANEL + lane];
            }
        }
    });
}

/// Columns of activations that lie together for the weight gradient.
pub(super) const GROUP: usize = 8;

/// Activations `x [rows, in]` as `[in / 8][rows][8]`: what [`backward_weight`](super::backward_weight) reads. Packed
/// once for all matrices that share the input; the memory is kept from use to use.
#[derive(Debug, Default)]
pub struct RowPacked {
    data: Buffer,
    rows: usize,
    inner: usize,
}

impl RowPacked {
    /// Takes `x [rows, in]`.
    pub fn pack(&mut self, cpu: &Cpu, x: &[f32], inner: usize) {
        let rows = x.len() / inner;
        (self.rows, self.inner) = (rows, inner);
        let len = inner.div_ceil(GROUP) * rows * GROUP;
        self.data.reserve(len);
        cpu.pool().parts(&mut self.data[..len], rows * GROUP, |group, part| {
            let (first, width) = (group * GROUP, GROUP.min(inner - group * GROUP));
            for (row, values) in part.chunks_exact_mut(GROUP).enumerate() {
                let source = &x[row * inner + first..][..width];
                values[..width].copy_from_slice(source);
                values[width..].fill(0.0);
            }
        });
    }

    /// Rows that were packed.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    #[must_use]
    pub fn inner(&self) -> usize {
        self.inner
    }

    pub(super) fn group(&self, group: usize) -> &[f32] {
        &self.data[group * self.rows * GROUP..][..self.rows * GROUP]
    }
}
