//! Rows in parallel; the weight's gradient in parallel over columns, each a chain over the rows.
use crate::lanes::dot;
use crate::path::kernel;
use crate::{Cpu, scratch};

/// Rows of a task: enough work to be worth handing over.
const ROWS: usize = 16;
/// Columns of a task of the weight's gradient.
const COLUMNS: usize = 64;

/// `y` and `rstd` of each row of `x [rows, n]`, `n = weight.len()`.
///
/// # Panics
/// When a length does not fit the shape.
pub fn forward(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let n = weight.len();
    assert_eq!((x.len(), y.len()), (rstd.len() * n, rstd.len() * n), "rmsnorm of rows of {n}");
    let mut jobs: Vec<_> = x.chunks(ROWS * n).zip(y.chunks_mut(ROWS * n)).zip(rstd.chunks_mut(ROWS)).collect();
    cpu.pool().each(&mut jobs, |_, ((x, y), rstd)| normalize(cpu.path(), x, weight, eps, y, rstd));
}

kernel! {
    fn normalize(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
        let n = weight.len();
        for ((x, y), rstd) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(rstd) {
            *rstd = 1.0 / (dot(x, x) / n as f32 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = (x * *rstd) * w;
            }
        }
    }
}

/// Operands of [`backward`]. `[rows, n]` where not said otherwise.
pub struct Backward<'a> {
    /// dL/dy.
    pub dy: &'a [f32],
    /// The forward's input.
    pub x: &'a [f32],
    /// `[n]`
    pub weight: &'a [f32],
    /// The forward's `rstd`. `[rows]`
    pub rstd: &'a [f32],
    /// dL/dx is added to it.
    pub dx: &'a mut [f32],
    /// dL/dw is added to it, rows ascending; empty where it is not wanted. `[n]`
    pub d_weight: &'a mut [f32],
}

/// Both gradients.
///
/// # Panics
/// When a length does not fit the shape.
pub fn backward(cpu: &Cpu, job: Backward<'_>) {
    let Backward { dy, x, weight, rstd, dx, d_weight } = job;
    let n = weight.len();
    let size = rstd.len() * n;
    assert_eq!((dy.len(), x.len(), dx.len()), (size, size, size), "rmsnorm of rows of {n}");
    assert!(d_weight.is_empty() || d_weight.len() == n, "rmsnorm of rows of {n}");
    let rows = dy.chunks(ROWS * n).zip(x.chunks(ROWS * n)).zip(rstd.chunks(ROWS));
    let mut jobs: Vec<_> = rows.zip(dx.chunks_mut(ROWS * n)).collect();
    cpu.pool().each(&mut jobs, |_, (((dy, x), rstd), dx)| {
        scratch::with(n, |products| inputs(cpu.path(), dy, x, weight, rstd, dx, products))
    });
    cpu.pool().parts(d_weight, COLUMNS, |part, sums| columns(cpu.path(), dy, x, rstd, n, part * COLUMNS, sums));
}

kernel! {
    /// `dx += rstd * (g - x_hat * mean(g * x_hat))`, `g = dy * w`, `x_hat = x * rstd`.
    fn inputs(dy: &[f32], x: &[f32], weight: &[f32], rstd: &[f32], dx: &mut [f32], products: &mut [f32]) {
        let n = weight.len();
        let rows = dy.chunks_exact(n).zip(x.chunks_exact(n)).zip(rstd).zip(dx.chunks_exact_mut(n));
        for (((dy, x), rstd), dx) in rows {
            for ((product, dy), w) in products.iter_mut().zip(dy).zip(weight) {
                *product = dy * w;
            }
            let mean = dot(products, x) * rstd / n as f32;
            for ((dx, product), x) in dx.iter_mut().zip(&*products).zip(x) {
                *dx += rstd * (x * rstd).mul_add(-mean, *product);
            }
        }
    }
}

kernel! {
    /// `sums[j] += dy[.., first + j] * x_hat[.., first + j]`, one chain over the rows.
    fn columns(dy: &[f32], x: &[f32], rstd: &[f32], n: usize, first: usize, sums: &mut [f32]) {
        let width = sums.len();
        for ((dy, x), rstd) in dy.chunks_exact(n).zip(x.chunks_exact(n)).zip(rstd) {
            let (dy, x) = (&dy[first..first + width], &x[first..first + width]);
            for ((sum, dy), x) in sums.iter_mut().zip(dy).zip(x) {
                *sum = dy.mul_add(x * rstd, *sum);
            }
        }
    }
}
