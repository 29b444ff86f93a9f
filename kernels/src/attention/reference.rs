//! The definition in f64 with libm, and its gradients from the derivative of each score.
use super::Heads;

fn row<'a>(x: &'a [f32], heads: usize, dim: usize, position: usize, head: usize) -> impl Iterator<Item = f64> + Clone + 'a {
    x[(position * heads + head) * dim..][..dim].iter().map(|x| f64::from(*x))
}

fn dot(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

fn probabilities(h: Heads, q: &[f32], k: &[f32], position: usize, head: usize) -> Vec<f64> {
    let key = head / h.group();
    let query = row(q, h.query, h.dim, position, head);
    let scores = (0..=position).map(|t| dot(query.clone(), row(k, h.key_value, h.dim, t, key)) / (h.dim as f64).sqrt());
    let weights: Vec<f64> = scores.map(f64::exp).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

/// `out [rows, query * dim]` of one sequence.
pub(super) fn forward(h: Heads, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let rows = q.len() / (h.query * h.dim);
    let mut out = vec![0.0; q.len()];
    for position in 0..rows {
        for head in 0..h.query {
            for (t, p) in probabilities(h, q, k, position, head).into_iter().enumerate() {
                let values = row(v, h.key_value, h.dim, t, head / h.group());
                let out = &mut out[(position * h.query + head) * h.dim..][..h.dim];
                out.iter_mut().zip(values).for_each(|(out, v)| *out += p * v);
            }
        }
    }
    out
}

/// `dq`, `dk`, `dv` of one sequence.
pub(super) fn backward(h: Heads, q: &[f32], k: &[f32], v: &[f32], d_out: &[f32]) -> [Vec<f64>; 3] {
    let rows = q.len() / (h.query * h.dim);
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for position in 0..rows {
        for head in 0..h.query {
            let key = head / h.group();
            let p = probabilities(h, q, k, position, head);
            let upstream = row(d_out, h.query, h.dim, position, head);
            let dp: Vec<f64> = (0..=position).map(|t| dot(upstream.clone(), row(v, h.key_value, h.dim, t, key))).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
            for t in 0..=position {
                let ds = p[t] * (dp[t] - mean) / (h.dim as f64).sqrt();
                let (at_q, at_k) = ((position * h.query + head) * h.dim, (t * h.key_value + key) * h.dim);
                for i in 0..h.dim {
                    dq[at_q + i] += ds * f64::from(k[at_k + i]);
                    dk[at_k + i] += ds * f64::from(q[at_q + i]);
                    dv[at_k + i] += p[t] * f64::from(d_out[at_q + i]);
                }
            }
        }
    }
    [dq, dk, dv]
}
