//! Panels in parallel; the 48 rows of a panel side by side.
use crate::Cpu;
use crate::linear::{PANEL, packed_index, packed_len};
use crate::path::kernel;

/// Both adapters of a matrix, canonical.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// `[r, in]`
    pub a: &'a [f32],
    /// `[out, r]`
    pub b: &'a [f32],
    /// `r`
    pub rank: usize,
    /// `s`
    pub scale: f32,
}

/// `merged = frozen + s B A`, both packed `[out, in]`; the rows that fill the last panel stay as they are in `frozen`.
///
/// # Panics
/// When a length does not fit the shapes.
pub fn merge(cpu: &Cpu, frozen: &[f32], (out, inner): (usize, usize), product: Product<'_>, merged: &mut [f32]) {
    let Product { a, b, rank, scale } = product;
    let size = packed_len(out, inner);
    assert_eq!((frozen.len(), merged.len()), (size, size), "merge {out} x {inner}");
    assert_eq!((a.len(), b.len()), (rank * inner, out * rank), "adapters of rank {rank} for {out} x {inner}");
    cpu.pool().parts(merged, PANEL * inner, |panel, merged| {
        // B's rows of this panel, side by side. [r, 48]
        let mut columns = vec![0.0; rank * PANEL];
        for row in panel * PANEL..((panel + 1) * PANEL).min(out) {
            for j in 0..rank {
                columns[packed_index(row % PANEL, j, rank)] = b[row * rank + j];
            }
        }
        combine(cpu.path(), &frozen[panel * PANEL * inner..][..PANEL * inner], a, &columns, scale, merged);
    });
}

kernel! {
    fn combine(frozen: &[f32], a: &[f32], columns: &[f32], scale: f32, merged: &mut [f32]) {
        let inner = frozen.len() / PANEL;
        let frozen = frozen.as_chunks::<PANEL>().0;
        let merged = merged.as_chunks_mut::<PANEL>().0;
        let columns = columns.as_chunks::<PANEL>().0;
        for (k, (target, frozen)) in merged.iter_mut().zip(frozen).enumerate() {
            let mut sums = [0.0f32; PANEL];
            for (j, column) in columns.iter().enumerate() {
                let factor = a[j * inner + k];
                for (sum, b) in sums.iter_mut().zip(column) {
                    *sum = b.mul_add(factor, *sum);
                }
            }
            for ((target, sum), frozen) in target.iter_mut().zip(&sums).zip(frozen) {
                *target = scale.mul_add(*sum, *frozen);
            }
        }
    }
}
