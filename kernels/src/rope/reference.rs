//! The definition in f64 with libm.

/// One head at a position.
pub(super) fn rotate(head: &[f32], position: u32, theta: f64) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for i in 0..half {
        let angle = f64::from(position) * theta.powf(-2.0 * i as f64 / head.len() as f64);
        let (x, y) = (f64::from(head[i]), f64::from(head[i + half]));
        out[i] = x * angle.cos() - y * angle.sin();
        out[i + half] = y * angle.cos() + x * angle.sin();
    }
    out
}
