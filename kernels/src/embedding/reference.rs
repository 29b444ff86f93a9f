//! The definition on the canonical layout.

/// Rows of `w [vocab, hidden]`.
pub(super) fn gather(w: &[f32], hidden: usize, tokens: &[u32]) -> Vec<f32> {
    tokens.iter().flat_map(|t| &w[*t as usize * hidden..][..hidden]).copied().collect()
}

/// Adds rows to `dw [vocab, hidden]`.
pub(super) fn scatter_add(dw: &mut [f32], hidden: usize, tokens: &[u32], dx: &[f32]) {
    for (row, token) in tokens.iter().enumerate() {
        for k in 0..hidden {
            dw[*token as usize * hidden + k] += dx[row * hidden + k];
        }
    }
}
