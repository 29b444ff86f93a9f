//! The definition: inverse of the cumulative distribution in f64 with libm.

/// The token at `u`, and how far `u` is from the borders of its share.
pub(super) fn categorical(logits: &[f32], temperature: f64, u: f64) -> (u32, f64) {
    let weights: Vec<f64> = logits.iter().map(|l| (f64::from(*l) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut before = 0.0;
    for (token, weight) in weights.iter().enumerate() {
        let share = weight / total;
        if before + share > u {
            return (token as u32, (u - before).min(before + share - u));
        }
        before += share;
    }
    (logits.len() as u32 - 1, 0.0)
}
