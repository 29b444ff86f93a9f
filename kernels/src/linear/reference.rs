//! The definitions on canonical matrices, one element at a time.
use crate::Format;
use crate::bf16::{round, widen};
use crate::int8::GROUP;

/// The chain `start + sum of a b`: in order; with bf16 both factors rounded and the second one of each pair first; with int8 a
/// group at a time.
fn chain(format: Format, start: f32, terms: impl Iterator<Item = (f32, f32)>) -> f32 {
    let mut terms: Vec<_> = terms.collect();
    if format == Format::Int8 {
        let (a, b): (Vec<f32>, Vec<f32>) = terms.into_iter().unzip();
        return a.chunks(GROUP).zip(b.chunks(GROUP)).fold(start, |acc, (a, b)| {
            let ((a, own), (b, scale)) = (integers(a), integers(b));
            let sum: i64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            (sum as f32 * own).mul_add(scale, acc)
        });
    }
    if format == Format::Bf16 {
        terms.iter_mut().for_each(|(a, b)| (*a, *b) = (widen(round(*a)), widen(round(*b))));
        if !terms.len().is_multiple_of(2) {
            terms.push((0.0, 0.0));
        }
        terms.as_chunks_mut::<2>().0.iter_mut().for_each(|pair| pair.reverse());
    }
    terms.into_iter().fold(start, |acc, (a, b)| a.mul_add(b, acc))
}

/// A group's integers and their scale.
fn integers(group: &[f32]) -> (Vec<i64>, f32) {
    let largest = group.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    if largest == 0.0 {
        return (vec![0; group.len()], 0.0);
    }
    let inverse = 127.0 / largest;
    (group.iter().map(|x| (x * inverse).round_ties_even() as i64).collect(), largest / 127.0)
}

/// A row as its int8 form has it.
pub(super) fn dequantized(row: &[f32]) -> Vec<f32> {
    let group = |group| {
        let (integers, scale) = integers(group);
        integers.into_iter().map(move |q| q as f32 * scale)
    };
    row.chunks(GROUP).flat_map(group).collect()
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
