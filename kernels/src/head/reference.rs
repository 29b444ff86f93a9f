//! The definition in f64 on the canonical layout.

/// Log-prob of the target, entropy, and the gradient of `d_logp * logp + d_entropy * entropy` by each logit.
pub(crate) fn target(logits: &[f64], token: usize, temperature: f64, d_logp: f64, d_entropy: f64) -> (f64, f64, Vec<f64>) {
    let z: Vec<f64> = logits.iter().map(|l| l / temperature).collect();
    let max = z.iter().fold(f64::NEG_INFINITY, |m, z| m.max(*z));
    let log_sum = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    let logp: Vec<f64> = z.iter().map(|z| z - log_sum).collect();
    let entropy = -logp.iter().map(|l| l.exp() * l).sum::<f64>();
    let gradient = logp.iter().enumerate().map(|(v, l)| {
        let own = if v == token { 1.0 } else { 0.0 };
        (d_logp * (own - l.exp()) - d_entropy * l.exp() * (l + entropy)) / temperature
    });
    (logp[token], entropy, gradient.collect())
}

/// `rows x vocab` logits.
pub(super) fn logits(hidden: &[f32], weight: &[f32], inner: usize) -> Vec<Vec<f64>> {
    let dot = |h: &[f32], w: &[f32]| h.iter().zip(w).map(|(h, w)| f64::from(*h) * f64::from(*w)).sum();
    hidden.chunks(inner).map(|h| weight.chunks(inner).map(|w| dot(h, w)).collect()).collect()
}
