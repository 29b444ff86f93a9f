//! The definitions on canonical matrices, one element at a time.
use crate::Format;
use crate::bf16::{round, widen};

/// The chain `start + sum of a b`: in order; with bf16 both factors rounded and the second one of each pair first.
fn chain(format: Format, start: f32, terms: impl Iterator<Item = (f32, f32)>) -> f32 {
    let mut terms: Vec<_> = terms.collect();
    if format == Format::Bf16 {
        terms.iter_mut().for_each(|(a, b)| (*a, *b) = (widen(round(*a)), widen(round(*b))));
        if !terms.len().is_multiple_of(2) {
            terms.push((0.0, 0.0));
        }
        terms.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.reverse());
    }
    terms.into_iter().fold(start, |acc, (a, b)| a.mul_add(b, acc))
}

/// `y [rows, out] = start + x [rows, in] W^T`, the chain beginning at `start`.
pub(super) fn forward(format: Format, x: &[f32], w: &[f32], out: usize, inner: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(inner).zip(y.chunks_exact_mut(out)) {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(inner)) {
            *y = chain(format, *y, x.iter().copied().zip(w.iter().copied()));
        }
    }
}

/// `dx [rows, in] = start + dy [rows, out] W`.
pub(super) fn backward_input(format: Format, dy: &[f32], w: &[f32], out: usize, inner: usize, dx: &mut [f32]) {
    for (dy, dx) in dy.chunks_exact(out).zip(dx.chunks_exact_mut(inner)) {
        for (k, dx) in dx.iter_mut().enumerate() {
            *dx = chain(format, *dx, (0..out).map(|n| (dy[n], w[n * inner + k])));
        }
    }
}

/// `dW [out, in] += dy^T x`.
pub(super) fn backward_weight(format: Format, x: &[f32], dy: &[f32], out: usize, inner: usize, dw: &mut [f32]) {
    for n in 0..out {
        for k in 0..inner {
            let terms = dy.chunks_exact(out).zip(x.chunks_exact(inner)).map(|(dy, x)| (x[k], dy[n]));
            dw[n * inner + k] = chain(format, dw[n * inner + k], terms);
        }
    }
}
