//! The definitions on canonical matrices, one element at a time.

/// `y [rows, out] = start + x [rows, in] W^T`, the chain beginning at `start`.
pub(super) fn forward(x: &[f32], w: &[f32], out: usize, inner: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(inner).zip(y.chunks_exact_mut(out)) {
        for (y, w) in y.iter_mut().zip(w.chunks_exact(inner)) {
            *y = x.iter().zip(w).fold(*y, |acc, (x, w)| x.mul_add(*w, acc));
        }
    }
}

/// `dx [rows, in] = start + dy [rows, out] W`.
pub(super) fn backward_input(dy: &[f32], w: &[f32], out: usize, inner: usize, dx: &mut [f32]) {
    for (dy, dx) in dy.chunks_exact(out).zip(dx.chunks_exact_mut(inner)) {
        for (k, dx) in dx.iter_mut().enumerate() {
            *dx = (0..out).fold(*dx, |acc, n| dy[n].mul_add(w[n * inner + k], acc));
        }
    }
}

/// `dW [out, in] += dy^T x`.
pub(super) fn backward_weight(x: &[f32], dy: &[f32], out: usize, inner: usize, dw: &mut [f32]) {
    for n in 0..out {
        for k in 0..inner {
            let terms = dy.chunks_exact(out).zip(x.chunks_exact(inner));
            dw[n * inner + k] = terms.fold(dw[n * inner + k], |acc, (dy, x)| x[k].mul_add(dy[n], acc));
        }
    }
}
