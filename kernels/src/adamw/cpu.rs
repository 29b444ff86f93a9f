//! One pass over parameters, gradients and moments; gradients are zeroed on the way.
use crate::Cpu;
use crate::path::kernel;

/// Values of a task of [`step`].
const PART: usize = 1 << 15;
/// Values summed together by [`sum_squares`] before the partial sums are added in order: part of the definition.
const CHUNK: usize = 1 << 14;

/// Factors of one update, already corrected for bias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    correction1: f32,
    correction2: f32,
    eps: f32,
    keep: f32,
    rate: f32,
    gradient_scale: f32,
}

impl Step {
    /// Update number `count` (from 1) with learning rate `rate`; `decay` is the weight decay, 0 for vectors.
    #[must_use]
    pub fn new(betas: (f64, f64), eps: f64, decay: f64, rate: f64, gradient_scale: f64, count: u64) -> Self {
        let power = |base: f64| (0..64).rev().fold(1.0, |p: f64, bit| p * p * if count >> bit & 1 == 1 { base } else { 1.0 });
        Self {
            beta1: betas.0 as f32,
            beta2: betas.1 as f32,
            rest1: (1.0 - betas.0) as f32,
            rest2: (1.0 - betas.1) as f32,
            correction1: (1.0 / (1.0 - power(betas.0))) as f32,
            correction2: (1.0 / (1.0 - power(betas.1))) as f32,
            eps: eps as f32,
            keep: (1.0 - rate * decay) as f32,
            rate: rate as f32,
            gradient_scale: gradient_scale as f32,
        }
    }

    /// All of them, in the order in which `cuda.cu` takes them.
    pub(super) fn factors(&self) -> [f32; 10] {
        let Self { beta1, beta2, rest1, rest2, correction1, correction2, eps, keep, rate, gradient_scale } = *self;
        [beta1, beta2, rest1, rest2, correction1, correction2, eps, keep, rate, gradient_scale]
    }
}

/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, `w = (1 - lr decay) w - lr m' / (sqrt(v') + eps)` with
/// `g` times the scale and bias-corrected `m'`, `v'`; then `g = 0`.
///
/// # Panics
/// When the lengths differ.
pub fn step(cpu: &Cpu, step: &Step, weight: &mut [f32], gradient: &mut [f32], first: &mut [f32], second: &mut [f32]) {
    let n = weight.len();
    assert_eq!((gradient.len(), first.len(), second.len()), (n, n, n));
    let moments = first.chunks_mut(PART).zip(second.chunks_mut(PART));
    let mut jobs: Vec<_> = weight.chunks_mut(PART).zip(gradient.chunks_mut(PART)).zip(moments).collect();
    cpu.pool()
        .each(&mut jobs, |_, ((weight, gradient), (first, second))| update(cpu.path(), *step, weight, gradient, first, second));
}

kernel! {
    fn update(s: Step, weight: &mut [f32], gradient: &mut [f32], first: &mut [f32], second: &mut [f32]) {
        for (((w, g), m), v) in weight.iter_mut().zip(gradient).zip(first).zip(second) {
            let gradient = *g * s.gradient_scale;
            *m = s.beta1.mul_add(*m, s.rest1 * gradient);
            *v = s.beta2.mul_add(*v, s.rest2 * gradient * gradient);
            let direction = (*m * s.correction1) / ((*v * s.correction2).sqrt() + s.eps);
            *w = s.keep.mul_add(*w, -(s.rate * direction));
            *g = 0.0;
        }
    }
}

/// Sum of squares in f64: 16 lanes and a tree within chunks of 16,384 values, chunks in order.
#[must_use]
pub fn sum_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    let mut jobs: Vec<_> = x.chunks(CHUNK).map(|chunk| (chunk, 0.0)).collect();
    cpu.pool().each(&mut jobs, |_, (chunk, sum)| *sum = chunk_squares(cpu.path(), chunk));
    jobs.iter().map(|job| job.1).sum()
}

kernel! {
    fn chunk_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 16];
        let chunks = x.chunks_exact(16);
        let tail = chunks.remainder();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = f64::from(*x).mul_add(f64::from(*x), *lane);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(tail) {
            *lane = f64::from(*x).mul_add(f64::from(*x), *lane);
        }
        let mut half = 8;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}
