//! Rows in parallel; the gradient in parallel over columns.
use crate::Cpu;
use crate::path::kernel;

/// Rows of a task.
const ROWS: usize = 16;
/// Columns of a task of the gradient.
const COLUMNS: usize = 64;

/// Adds `bias [n]` to each row of `y [rows, n]`.
///
/// # Panics
/// When `y` is not made of rows of `n`.
pub fn forward(cpu: &Cpu, bias: &[f32], y: &mut [f32]) {
    let n = bias.len();
    assert!(y.len().is_multiple_of(n.max(1)), "rows of {n}");
    cpu.pool().parts(y, ROWS * n, |_, y| add(cpu.path(), bias, y));
}

kernel! {
    fn add(bias: &[f32], y: &mut [f32]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

/// Adds the sum of the rows of `dy [rows, n]` to `d_bias [n]`: the chain of an element goes on, rows ascending.
///
/// # Panics
/// When `dy` is not made of rows of `n`.
pub fn backward(cpu: &Cpu, dy: &[f32], d_bias: &mut [f32]) {
    let n = d_bias.len();
    assert!(dy.len().is_multiple_of(n.max(1)), "rows of {n}");
    cpu.pool().parts(d_bias, COLUMNS, |part, sums| columns(cpu.path(), dy, n, part * COLUMNS, sums));
}

kernel! {
    fn columns(dy: &[f32], n: usize, first: usize, sums: &mut [f32]) {
        let width = sums.len();
        for row in dy.chunks_exact(n) {
            for (sum, dy) in sums.iter_mut().zip(&row[first..first + width]) {
                *sum += dy;
            }
        }
    }
}
