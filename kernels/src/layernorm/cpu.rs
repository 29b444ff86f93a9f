//! Rows in parallel; the weight's gradient in parallel over columns, each a chain over the rows.
use crate::lanes::{block, blocks, dot, each, splat, sum};
use crate::path::kernel;
use crate::rmsnorm::Backward;
use crate::{Cpu, scratch};

/// Rows of a task: enough work to be worth handing over.
const ROWS: usize = 16;
/// Columns of a task of the weight's gradient.
const COLUMNS: usize = 64;

/// Weight and bias `[n]`, and the epsilon.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// `w`
    pub weight: &'a [f32],
    /// `b`
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// `y` and `rstd` of each row of `x [rows, n]`.
///
/// # Panics
/// When a length does not fit the shape.
pub fn forward(cpu: &Cpu, x: &[f32], affine: Affine<'_>, y: &mut [f32], rstd: &mut [f32]) {
    let n = affine.weight.len();
    let size = rstd.len() * n;
    assert_eq!((x.len(), y.len(), affine.bias.len()), (size, size, n), "layernorm of rows of {n}");
    let mut jobs: Vec<_> = x.chunks(ROWS * n).zip(y.chunks_mut(ROWS * n)).zip(rstd.chunks_mut(ROWS)).collect();
    cpu.pool().each(&mut jobs, |_, ((x, y), rstd)| normalize(cpu.path(), x, affine, y, rstd));
}

kernel! {
    fn normalize(x: &[f32], affine: Affine<'_>, y: &mut [f32], rstd: &mut [f32]) {
        let n = affine.weight.len();
        for ((x, y), rstd) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(rstd) {
            let mean = mean(x);
            *rstd = 1.0 / (variance(x, mean) + affine.eps).sqrt();
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(affine.weight).zip(affine.bias) {
                *y = ((x - mean) * *rstd).mul_add(*w, *b);
            }
        }
    }
}

#[inline(always)]
fn mean(x: &[f32]) -> f32 {
    let mut sums = splat(0.0);
    for index in 0..blocks(x.len()) {
        let v = block(x, index, 0.0);
        sums = each(|i| sums[i] + v[i]);
    }
    sum(sums) / x.len() as f32
}

#[inline(always)]
fn variance(x: &[f32], mean: f32) -> f32 {
    let mut sums = splat(0.0);
    for index in 0..blocks(x.len()) {
        let v = block(x, index, mean);
        sums = each(|i| (v[i] - mean).mul_add(v[i] - mean, sums[i]));
    }
    sum(sums) / x.len() as f32
}

/// The gradients of input and weight; the bias's is [`bias::backward`](crate::bias::backward) of `dy`.
///
/// # Panics
/// When a length does not fit the shape.
pub fn backward(cpu: &Cpu, job: Backward<'_>) {
    let Backward { dy, x, weight, rstd, dx, d_weight } = job;
    let n = weight.len();
    let size = rstd.len() * n;
    assert_eq!((dy.len(), x.len(), dx.len()), (size, size, size), "layernorm of rows of {n}");
    assert!(d_weight.is_empty() || d_weight.len() == n, "layernorm of rows of {n}");
    let mut means = vec![0.0; rstd.len()];
    let rows = dy.chunks(ROWS * n).zip(x.chunks(ROWS * n)).zip(rstd.chunks(ROWS));
    let mut jobs: Vec<_> = rows.zip(dx.chunks_mut(ROWS * n)).zip(means.chunks_mut(ROWS)).collect();
    cpu.pool().each(&mut jobs, |_, ((((dy, x), rstd), dx), means)| {
        scratch::with(2 * n, |memory| inputs(cpu.path(), dy, x, weight, rstd, dx, means, memory))
    });
    let columns = |part, sums: &mut [f32]| weights(cpu.path(), dy, x, rstd, &means, part * COLUMNS, sums);
    cpu.pool().parts(d_weight, COLUMNS, columns);
}

kernel! {
    /// `dx += rstd * (g - mean(g) - x_hat * mean(g * x_hat))`, `g = dy * w`, `x_hat = (x - mean) * rstd`.
    fn inputs(
        dy: &[f32],
        x: &[f32],
        weight: &[f32],
        rstd: &[f32],
        dx: &mut [f32],
        means: &mut [f32],
        memory: &mut [f32],
    ) {
        let n = weight.len();
        let (products, hats) = memory.split_at_mut(n);
        let rows = dy.chunks_exact(n).zip(x.chunks_exact(n)).zip(rstd).zip(dx.chunks_exact_mut(n)).zip(means);
        for ((((dy, x), rstd), dx), middle) in rows {
            *middle = mean(x);
            for ((product, dy), w) in products.iter_mut().zip(dy).zip(weight) {
                *product = dy * w;
            }
            for (hat, x) in hats.iter_mut().zip(x) {
                *hat = (x - *middle) * rstd;
            }
            let (level, tilt) = (mean(products), dot(products, hats) / n as f32);
            for ((dx, product), hat) in dx.iter_mut().zip(&*products).zip(&*hats) {
                *dx += rstd * hat.mul_add(-tilt, product - level);
            }
        }
    }
}

kernel! {
    /// `sums[j] += dy[.., first + j] * x_hat[.., first + j]`, one chain over the rows.
    fn weights(dy: &[f32], x: &[f32], rstd: &[f32], means: &[f32], first: usize, sums: &mut [f32]) {
        let (width, n) = (sums.len(), x.len() / rstd.len().max(1));
        for (((dy, x), rstd), mean) in dy.chunks_exact(n.max(1)).zip(x.chunks_exact(n.max(1))).zip(rstd).zip(means) {
            let (dy, x) = (&dy[first..first + width], &x[first..first + width]);
            for ((sum, dy), x) in sums.iter_mut().zip(dy).zip(x) {
                *sum = dy.mul_add((x - mean) * rstd, *sum);
            }
        }
    }
}
