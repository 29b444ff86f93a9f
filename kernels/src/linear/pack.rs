//! Between canonical `[out, in]` and panels; activations regrouped for the weight gradient.
use super::PANEL;
use super::rows::unpack_panel;
use crate::bf16::{interleave, pair};
use crate::int8::{self, WEIGHT_BLOCK, round_columns};
use crate::path::Path;
use crate::{Buffer, Cpu, Format};

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
        unpack_panel(cpu.path(), source, inner, part);
    });
}

/// As [`unpack`] on this thread, some rows at a time: `show(first row, rows)`, in order.
///
/// # Panics
/// As [`unpack`].
pub fn unpack_rows(path: Path, packed: &[f32], out: usize, inner: usize, mut show: impl FnMut(usize, &[f32])) {
    assert_eq!(packed.len(), packed_len(out, inner), "unpack {out} x {inner}");
    crate::scratch::with(PANEL * inner, |rows| {
        for (panel, source) in packed.chunks_exact(PANEL * inner).enumerate() {
            let rows = &mut rows[..PANEL.min(out - panel * PANEL) * inner];
            unpack_panel(path, source, inner, rows);
            show(panel * PANEL, rows);
        }
    });
}

/// The panels of an f32 matrix with `inner` columns as panels of bf16 pairs.
///
/// # Panics
/// When a length does not fit the shape.
pub fn halve(cpu: &Cpu, panels: &[f32], inner: usize, words: &mut [u32]) {
    let (full, width) = (PANEL * inner, PANEL * inner.div_ceil(2));
    assert_eq!(panels.len() / full * width, words.len(), "panels of {inner} columns");
    let mut jobs: Vec<_> = panels.chunks_exact(full).zip(words.chunks_exact_mut(width)).collect();
    cpu.pool().each(&mut jobs, |_, (panel, words)| {
        for (columns, words) in panel.chunks(2 * PANEL).zip(words.chunks_exact_mut(PANEL)) {
            let (even, odd) = columns.split_at(PANEL);
            interleave(cpu.path(), even, if odd.is_empty() { &[0.0; PANEL] } else { odd }, words);
        }
    });
}

/// The panels of an f32 matrix with `inner` columns as panels of int8 groups.
///
/// # Panics
/// When a length does not fit the shape.
pub fn quantize(cpu: &Cpu, panels: &[f32], inner: usize, words: &mut [u32]) {
    let (full, width) = (PANEL * inner, PANEL * Format::Int8.words(inner));
    assert_eq!(panels.len() / full * width, words.len(), "panels of {inner} columns");
    let mut jobs: Vec<_> = panels.chunks_exact(full).zip(words.chunks_exact_mut(width)).collect();
    cpu.pool().each(&mut jobs, |_, (panel, words)| {
        for (columns, block) in panel.chunks(int8::GROUP * PANEL).zip(words.chunks_exact_mut(WEIGHT_BLOCK * PANEL)) {
            round_columns(cpu.path(), columns, block);
        }
    });
}

/// Columns of activations that lie together for the weight gradient.
pub(super) const GROUP: usize = 8;

/// Activations `x [rows, in]` as `[in / 8][rows][8]`, with bf16 as `[in / 8][rows / 2][8]` pairs of rows: what
/// [`backward_weight`](super::backward_weight) reads. Packed once for all matrices that share the input; the memory is kept
/// from use to use.
#[derive(Debug, Default)]
pub struct RowPacked {
    data: Buffer,
    format: Format,
    rows: usize,
    inner: usize,
}

impl RowPacked {
    /// Takes `x [rows, in]`; the products with it are of this format.
    ///
    /// # Panics
    /// For int8, which has no gradients.
    pub fn pack(&mut self, cpu: &Cpu, format: Format, x: &[f32], inner: usize) {
        assert_ne!(format, Format::Int8, "int8 has no gradients");
        let rows = x.len() / inner;
        (self.format, self.rows, self.inner) = (format, rows, inner);
        let steps = format.words(rows);
        let len = inner.div_ceil(GROUP) * steps * GROUP;
        self.data.reserve(len);
        cpu.pool().parts(&mut self.data[..len], steps * GROUP, |group, part| {
            let (first, width) = (group * GROUP, GROUP.min(inner - group * GROUP));
            match format {
                Format::F32 | Format::Int8 => {
                    for (row, values) in part.chunks_exact_mut(GROUP).enumerate() {
                        let source = &x[row * inner + first..][..width];
                        values[..width].copy_from_slice(source);
                        values[width..].fill(0.0);
                    }
                }
                Format::Bf16 => {
                    let words: &mut [u32] = bytemuck::cast_slice_mut(part);
                    for (step, words) in words.chunks_exact_mut(GROUP).enumerate() {
                        let row = |row: usize| if row < rows { &x[row * inner + first..][..width] } else { &[] };
                        let (even, odd) = (row(2 * step), row(2 * step + 1));
                        for (k, word) in words.iter_mut().enumerate() {
                            let value = |row: &[f32]| row.get(k).copied().unwrap_or(0.0);
                            *word = pair(value(even), value(odd));
                        }
                    }
                }
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

    /// Format of the products.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    pub(super) fn group(&self, group: usize) -> &[u32] {
        let len = self.format.words(self.rows) * GROUP;
        &bytemuck::cast_slice(&self.data)[group * len..][..len]
    }
}
