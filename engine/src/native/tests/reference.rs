//! The decoder's definition in f64, plain loops and libm.
use crate::PackedSequence;
use cohort_model::{DecoderSpec, WeightSet};
use std::collections::BTreeMap;

pub(super) type Weights = BTreeMap<String, Vec<f64>>;

pub(super) fn widen(set: &WeightSet) -> Weights {
    set.0.iter().map(|(name, t)| (name.clone(), t.data.iter().map(|x| f64::from(*x)).collect())).collect()
}

fn linear(x: &[f64], w: &[f64]) -> Vec<f64> {
    w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

/// Adds a bias where there is one.
fn add(mut x: Vec<f64>, bias: Option<&Vec<f64>>) -> Vec<f64> {
    x.iter_mut().zip(bias.into_iter().flatten()).for_each(|(x, b)| *x += b);
    x
}

/// Normalises each head where there is a norm.
fn norm_heads(x: Vec<f64>, w: Option<&Vec<f64>>, eps: f64) -> Vec<f64> {
    match w {
        Some(w) => x.chunks(w.len()).flat_map(|head| norm(head, w, eps)).collect(),
        None => x,
    }
}

fn norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let scale = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + eps).sqrt();
    x.iter().zip(w).map(|(v, w)| v * scale * w).collect()
}

fn rotate(x: &mut [f64], dim: usize, position: usize, theta: f64) {
    for head in x.chunks_mut(dim) {
        for i in 0..dim / 2 {
            let (s, c) = (position as f64 * theta.powf(-2.0 * i as f64 / dim as f64)).sin_cos();
            let (a, b) = (head[i], head[i + dim / 2]);
            (head[i], head[i + dim / 2]) = (a * c - b * s, b * c + a * s);
        }
    }
}

/// A norm of the residual stream: root-mean-square, or layer norm where there is a bias.
fn stream_norm(w: &Weights, name: &str, x: &[f64], eps: f64) -> Vec<f64> {
    let weight = &w[&format!("{name}.weight")];
    match w.get(&format!("{name}.bias")) {
        None => norm(x, weight, eps),
        bias => {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let centred: Vec<f64> = x.iter().map(|v| v - mean).collect();
            add(norm(&centred, weight, eps), bias)
        }
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

/// Logits after each token.
fn logits(spec: &DecoderSpec, w: &Weights, tokens: &[u32]) -> Vec<Vec<f64>> {
    let eps = f64::from(spec.norm_eps);
    let embed = &w["model.embed_tokens.weight"];
    let learned = w.get("model.embed_positions.weight");
    let start = |(position, token): (usize, &u32)| {
        let at = position * spec.hidden;
        let x = embed[*token as usize * spec.hidden..][..spec.hidden].to_vec();
        add(x, learned.map(|all| all[at..at + spec.hidden].to_vec()).as_ref())
    };
    let mut xs: Vec<Vec<f64>> = tokens.iter().enumerate().map(start).collect();
    for layer in 0..spec.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let maybe = |part: &str| w.get(&name(part));
        let project =
            |part: &str, x: &[f64]| add(linear(x, &w[&name(&format!("{part}.weight"))]), maybe(&format!("{part}.bias")));
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in xs.iter_mut().enumerate() {
            let n = stream_norm(w, &name("input_layernorm"), x, eps);
            let mut q = norm_heads(project("self_attn.q_proj", &n), maybe("self_attn.q_norm.weight"), eps);
            let mut k = norm_heads(project("self_attn.k_proj", &n), maybe("self_attn.k_norm.weight"), eps);
            if learned.is_none() {
                rotate(&mut q, spec.head_dim, position, spec.rope_theta);
                rotate(&mut k, spec.head_dim, position, spec.rope_theta);
            }
            keys.push(k);
            values.push(project("self_attn.v_proj", &n));
            let o = project("self_attn.o_proj", &attend(spec, &q, &keys, &values));
            x.iter_mut().zip(o).for_each(|(x, o)| *x += o);
            let n = stream_norm(w, &name("post_attention_layernorm"), x, eps);
            let up = project("mlp.up_proj", &n);
            let h: Vec<f64> = match maybe("mlp.gate_proj.weight") {
                Some(gate) => linear(&n, gate).iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect(),
                None => up.into_iter().map(gelu).collect(),
            };
            x.iter_mut().zip(project("mlp.down_proj", &h)).for_each(|(x, o)| *x += o);
        }
    }
    let head = w.get("lm_head.weight").unwrap_or(embed);
    xs.iter().map(|x| linear(&stream_norm(w, "model.norm", x, eps), head)).collect()
}

fn attend(spec: &DecoderSpec, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let (dim, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let mut out = Vec::new();
    for (head, q) in q.chunks(dim).enumerate() {
        let from = head / group * dim;
        let score = |k: &Vec<f64>| (q.iter().zip(&k[from..]).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()).exp();
        let weights: Vec<f64> = keys.iter().map(score).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..dim).map(|i| weights.iter().zip(values).map(|(w, v)| w / total * v[from + i]).sum::<f64>()));
    }
    out
}

/// Log-prob and entropy of each target.
pub(super) fn score(spec: &DecoderSpec, w: &Weights, s: &PackedSequence) -> Vec<(f64, f64)> {
    let logits = logits(spec, w, &s.tokens);
    let one = |target: &u32| {
        let z: Vec<f64> = logits[*target as usize - 1].iter().map(|l| l / f64::from(s.temperature)).collect();
        let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
        let entropy = z.iter().map(|z| -(z - log_sum) * (z - log_sum).exp()).sum();
        (z[s.tokens[*target as usize] as usize] - log_sum, entropy)
    };
    s.targets.iter().map(one).collect()
}
