//! The definition in f64.

/// Mean and `rstd` of a row.
fn statistics(row: &[f32], eps: f32) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = row.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    (mean, 1.0 / (variance + f64::from(eps)).sqrt())
}

/// `y` and `rstd`.
pub(super) fn forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut scales) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(weight.len()) {
        let (mean, rstd) = statistics(row, eps);
        let affine = weight.iter().zip(bias);
        y.extend(row.iter().zip(affine).map(|(v, (w, b))| (f64::from(*v) - mean) * rstd * f64::from(*w) + f64::from(*b)));
        scales.push(rstd);
    }
    (y, scales)
}

/// `dx` and `dw`, from the derivative of each output by each input.
pub(super) fn backward(dy: &[f32], x: &[f32], weight: &[f32], eps: f32) -> (Vec<f64>, Vec<f64>) {
    let n = weight.len();
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; n]);
    for (row, values) in x.chunks_exact(n).enumerate() {
        let (mean, rstd) = statistics(values, eps);
        let hat = |j: usize| (f64::from(values[j]) - mean) * rstd;
        for j in 0..n {
            let d = f64::from(dy[row * n + j]);
            dw[j] += d * hat(j);
            for i in 0..n {
                let direct = if i == j { 1.0 } else { 0.0 };
                let derivative = rstd * (direct - 1.0 / n as f64 - hat(i) * hat(j) / n as f64);
                dx[row * n + i] += d * f64::from(weight[j]) * derivative;
            }
        }
    }
    (dx, dw)
}
