//! Forward, backward and AdamW of 8 sequences x 128 tokens.
use super::{Subject, median, peak_mib, since};
use anyhow::Result;
use cohort_engine::{AdamW, EngineError, PackedBatch, PackedSequence, Upstream};
use serde_json::{Value, json};
use std::time::Instant;

/// Tokens/s and peak memory.
pub(crate) async fn train(subject: &Subject) -> Result<Value> {
    let engine = subject.engine()?;
    let sequences = subject.prompts(8, 128);
    let batch = PackedBatch {
        sequences: sequences
            .into_iter()
            .map(|tokens| PackedSequence { targets: (1..tokens.len() as u32).collect(), tokens, temperature: 1.0, shared: 0 })
            .collect(),
    };
    let tokens = batch.tokens() as f64;
    let (optimizer, targets) = (AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }, batch.targets());
    let mut seconds = Vec::new();
    for run in 0..=subject.runs {
        let batch = batch.clone();
        let took = engine
            .with_backend(move |backend| -> Result<f64, EngineError> {
                let start = Instant::now();
                backend.forward(&batch, true)?;
                backend.backward(Upstream { d_logp: &vec![-1.0 / targets as f32; targets], d_entropy: None })?;
                let norm = backend.grad_norm()?;
                backend.update(&optimizer, 1e-6, 1.0 / norm.max(1.0))?;
                Ok(since(start))
            })
            .await??;
        if run > 0 {
            seconds.push(took);
        }
    }
    let rate = tokens / median(seconds);
    Ok(json!({ "tokens_per_s": rate, "peak_mib": peak_mib(), "gflop_per_s": rate * 3.0 * subject.flops_a_token() / 1e9 }))
}
