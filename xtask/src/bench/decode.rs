//! Sampling through the rollout path.
use super::{Subject, median, since};
use anyhow::Result;
use cohort_engine::{Completion, Decoding, DrawKey, EngineHandle, Extend};
use cohort_model::DeviceKind;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

const BATCHES: [usize; 4] = [1, 8, 16, 32];
const GPU_BATCHES: [usize; 5] = [1, 8, 16, 32, 64];
const PROMPT: usize = 64;
const NEW: u32 = 64;

/// Tokens/s at each batch, the prefill and first token taken off.
pub(crate) async fn decode(subject: &Subject, prompts_out: Option<&Path>) -> Result<Value> {
    let engine = subject.engine()?;
    let mut report = Map::new();
    let batches = if subject.device == DeviceKind::Cuda { &GPU_BATCHES[..] } else { &BATCHES };
    for batch in batches.iter().copied().filter(|batch| subject.batch.is_none_or(|only| only == *batch)) {
        let prompts = subject.prompts(batch, PROMPT);
        generate(&engine, &prompts, 4).await?;
        let (mut rates, mut hashes) = (Vec::new(), Vec::new());
        for _ in 0..subject.runs {
            let start = Instant::now();
            generate(&engine, &prompts, 1).await?;
            let first = since(start);
            let start = Instant::now();
            let done = generate(&engine, &prompts, NEW).await?;
            rates.push(batch as f64 * f64::from(NEW - 1) / (since(start) - first));
            hashes = done.iter().map(|c| cohort_cluster::cli::token_sha256(&c.tokens)).collect();
        }
        let rate = median(rates);
        let figures = json!({
            "tokens_per_s": rate,
            "gflop_per_s": rate * subject.flops_a_token() / 1e9,
            "weights_gb_per_s": rate / batch as f64 * subject.flops_a_token() / 2.0 * subject.weight_bytes() / 1e9,
            "token_sha256": hashes,
        });
        report.insert(format!("batch_{batch}"), figures);
        if let Some(path) = prompts_out {
            let mut file = std::fs::File::create(path.with_extension(format!("{batch}.jsonl")))?;
            for (id, ids) in prompts.iter().enumerate() {
                writeln!(file, "{}", json!({ "id": id, "prompt_ids": ids }))?;
            }
        }
    }
    Ok(Value::Object(report))
}

/// Tokens/s of prompts alone, 16 x 64.
pub(crate) async fn prefill(subject: &Subject) -> Result<Value> {
    let engine = subject.engine()?;
    let prompts = subject.prompts(16, PROMPT);
    let vocab = subject.spec.vocab;
    let mut seconds = Vec::new();
    for run in 0..=subject.runs {
        let prompts = prompts.clone();
        let took = engine
            .with_backend(move |backend| -> Result<f64, cohort_engine::EngineError> {
                let mut logits = vec![0f32; prompts.len() * vocab];
                let kv = prompts.iter().map(|_| backend.kv_open()).collect::<Result<Vec<_>, _>>()?;
                let work: Vec<_> = kv.iter().zip(&prompts).map(|(&kv, p)| Extend { kv, tokens: p }).collect();
                let start = Instant::now();
                backend.extend(&work, &mut logits)?;
                let took = since(start);
                kv.into_iter().for_each(|kv| backend.kv_close(kv));
                Ok(took)
            })
            .await??;
        if run > 0 {
            seconds.push(took);
        }
    }
    let rate = (16 * PROMPT) as f64 / median(seconds);
    Ok(json!({ "tokens_per_s": rate, "batch": 16, "prompt": PROMPT }))
}

/// All prompts side by side, greedy, no stop.
pub(crate) async fn generate(engine: &EngineHandle, prompts: &[Vec<u32>], new: u32) -> Result<Vec<Completion>> {
    draw(engine, prompts, |key| Decoding { greedy: true, ..Decoding::plain(1.0, new, key) }, 0).await
}

/// All prompts side by side, decoded as `how` says under the key of each.
pub(crate) async fn draw(
    engine: &EngineHandle,
    prompts: &[Vec<u32>],
    how: impl Fn(DrawKey) -> Decoding,
    seed: u64,
) -> Result<Vec<Completion>> {
    let mut tasks = Vec::new();
    for (sample, prompt) in prompts.iter().enumerate() {
        let mut session = engine.session();
        let prompt = prompt.clone();
        let decoding = how(DrawKey { seed, group: 0, sample: sample as u16 });
        tasks.push(tokio::spawn(async move { session.generate(&prompt, decoding).await }));
    }
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await??);
    }
    Ok(done)
}
