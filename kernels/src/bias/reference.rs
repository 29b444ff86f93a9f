//! The definitions, one element at a time.

/// `y [rows, n]`, `bias [n]`.
pub(super) fn forward(bias: &[f32], y: &mut [f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}

/// `dy [rows, n]`, `d_bias [n]`.
pub(super) fn backward(dy: &[f32], d_bias: &mut [f32]) {
    for row in dy.chunks_exact(d_bias.len()) {
        d_bias.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
    }
}
