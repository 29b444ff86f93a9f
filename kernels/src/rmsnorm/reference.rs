//! The definition in f64.

/// `y` and `rstd`.
pub(super) fn forward(x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let n = weight.len();
    let (mut y, mut scales) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(n) {
        let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
        let rstd = 1.0 / (mean + f64::from(eps)).sqrt();
        y.extend(row.iter().zip(weight).map(|(v, w)| f64::from(*v) * rstd * f64::from(*w)));
        scales.push(rstd);
    }
    (y, scales)
}

/// `dx` and `dw`, from the derivative of each output by each input.
pub(super) fn backward(dy: &[f32], x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let n = weight.len();
    let scales = forward(x, weight, eps).1;
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; n]);
    for (row, rstd) in scales.into_iter().enumerate() {
        let at = |slice: &[f32], j: usize| f64::from(slice[row * n + j]);
        for j in 0..n {
            dw[j] += at(dy, j) * at(x, j) * rstd;
            for i in 0..n {
                let direct = if i == j { rstd } else { 0.0 };
                let derivative = direct - at(x, j) * rstd.powi(3) * at(x, i) / n as f64;
                dx[row * n + i] += at(dy, j) * f64::from(weight[j]) * derivative;
            }
        }
    }
    (dx, dw)
}
