//! Elementwise, cut into parts for the threads.
use crate::Cpu;
use crate::math::exp;
use crate::path::kernel;

/// Values of a task.
const PART: usize = 8192;
/// `2 sqrt(2 / pi)`.
const TWICE: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

/// `h = gelu(x)`.
///
/// # Panics
/// When the lengths differ.
pub fn forward(cpu: &Cpu, x: &[f32], h: &mut [f32]) {
    assert_eq!(x.len(), h.len());
    cpu.pool().parts(h, PART, |part, h| activate(cpu.path(), &x[part * PART..][..h.len()], h));
}

kernel! {
    fn activate(x: &[f32], h: &mut [f32]) {
        for (h, x) in h.iter_mut().zip(x) {
            *h = x / (1.0 + exp(-exponent(*x)));
        }
    }
}

/// `2 u`.
#[inline(always)]
fn exponent(x: f32) -> f32 {
    TWICE * (CUBIC * x * x).mul_add(x, x)
}

/// Replaces `x` by the gradient with respect to it.
///
/// # Panics
/// When the lengths differ.
pub fn backward(cpu: &Cpu, dh: &[f32], x: &mut [f32]) {
    assert_eq!(x.len(), dh.len());
    cpu.pool().parts(x, PART, |part, x| differentiate(cpu.path(), &dh[part * PART..][..x.len()], x));
}

kernel! {
    /// With `s = 1 / (1 + e^(-2u))`: `dh (s + x s (1 - s) 2u')`.
    fn differentiate(dh: &[f32], x: &mut [f32]) {
        for (x, dh) in x.iter_mut().zip(dh) {
            let s = 1.0 / (1.0 + exp(-exponent(*x)));
            let slope = TWICE * (3.0 * CUBIC * *x).mul_add(*x, 1.0);
            let outside = s * (1.0 - s);
            // Where the sigmoid is flat the cube in the slope may be large: zero wins.
            let bend = if outside == 0.0 { 0.0 } else { *x * outside * slope };
            *x = dh * (s + bend);
        }
    }
}
