//! The definition in f64 with libm.

/// log-softmax of every token and the entropy.
pub(super) fn row(logits: &[f32], temperature: f64) -> (Vec<f64>, f64) {
    let z: Vec<f64> = logits.iter().map(|l| f64::from(*l) / temperature).collect();
    let max = z.iter().fold(f64::NEG_INFINITY, |m, z| m.max(*z));
    let log_sum = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    let logp: Vec<f64> = z.iter().map(|z| z - log_sum).collect();
    let entropy = -logp.iter().map(|l| if l.is_finite() { l.exp() * l } else { 0.0 }).sum::<f64>();
    (logp, entropy)
}
