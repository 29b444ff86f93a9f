//! The definition on canonical matrices.

/// `w [out, in]` becomes `w + scale b a`.
pub(super) fn merge(w: &mut [f32], a: &[f32], b: &[f32], (inner, rank): (usize, usize), scale: f32) {
    for (row, w) in w.chunks_exact_mut(inner).enumerate() {
        for (k, w) in w.iter_mut().enumerate() {
            let sum = (0..rank).fold(0.0f32, |sum, j| b[row * rank + j].mul_add(a[j * inner + k], sum));
            *w = scale.mul_add(sum, *w);
        }
    }
}
