//! Elementwise, cut into parts for the threads.
use crate::Cpu;
use crate::math::exp;
use crate::path::kernel;

/// Values of a task.
const PART: usize = 8192;

/// `h = silu(gate) * up`.
///
/// # Panics
/// When the lengths differ.
pub fn forward(cpu: &Cpu, gate: &[f32], up: &[f32], h: &mut [f32]) {
    assert_eq!((gate.len(), up.len()), (h.len(), h.len()));
    cpu.pool().parts(h, PART, |part, h| {
        let range = part * PART..part * PART + h.len();
        activate(cpu.path(), &gate[range.clone()], &up[range], h);
    });
}

kernel! {
    fn activate(gate: &[f32], up: &[f32], h: &mut [f32]) {
        for ((h, g), u) in h.iter_mut().zip(gate).zip(up) {
            *h = g / (1.0 + exp(-g)) * u;
        }
    }
}

/// Replaces `gate` and `up` by the gradients with respect to them.
///
/// # Panics
/// When the lengths differ.
pub fn backward(cpu: &Cpu, dh: &[f32], gate: &mut [f32], up: &mut [f32]) {
    assert_eq!((gate.len(), up.len()), (dh.len(), dh.len()));
    let mut jobs: Vec<_> = dh.chunks(PART).zip(gate.chunks_mut(PART)).zip(up.chunks_mut(PART)).collect();
    cpu.pool().each(&mut jobs, |_, ((dh, gate), up)| differentiate(cpu.path(), dh, gate, up));
}

kernel! {
    fn differentiate(dh: &[f32], gate: &mut [f32], up: &mut [f32]) {
        for ((dh, gate), up) in dh.iter().zip(gate).zip(up) {
            let (g, u) = (*gate, *up);
            let s = 1.0 / (1.0 + exp(-g));
            let silu = g * s;
            *gate = dh * u * silu.mul_add(1.0 - s, s);
            *up = dh * silu;
        }
    }
}
