//! The definition, one element at a time.
use super::Store;

/// `c[r][j]` of `rows x columns` from dense `a [rows, k]` and `b [k, columns]`.
pub(super) fn matrix(rows: usize, k: usize, columns: usize, a: &[f32], b: &[f32], c: &mut [f32], store: Store) {
    for r in 0..rows {
        for j in 0..columns {
            let old = c[r * columns + j];
            let mut acc = if store == Store::Chain { old } else { 0.0 };
            for p in 0..k {
                acc = a[r * k + p].mul_add(b[p * columns + j], acc);
            }
            c[r * columns + j] = if store == Store::Add { old + acc } else { acc };
        }
    }
}
