//! A group of 8 that shares a prompt of 1,024 tokens, beside 8 sequences with prompts of their own.
use super::decode::generate;
use super::{Subject, median, since};
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Instant;

const SAMPLES: usize = 8;
const PROMPT: usize = 1024;
const NEW: u32 = 64;

/// Seconds of both, alternating, and their ratio.
pub(crate) async fn sharing(subject: &Subject) -> Result<Value> {
    let engine = subject.engine()?;
    let apart = subject.prompts(SAMPLES, PROMPT);
    let together: Vec<_> = (0..SAMPLES).map(|_| apart[0].clone()).collect();
    let mut seconds = [Vec::new(), Vec::new()];
    for run in 0..=subject.runs {
        for (prompts, seconds) in [&together, &apart].into_iter().zip(&mut seconds) {
            let start = Instant::now();
            generate(&engine, prompts, NEW).await?;
            if run > 0 {
                seconds.push(since(start));
            }
        }
    }
    let [together, apart] = seconds.map(median);
    Ok(json!({ "shared_s": together, "apart_s": apart, "ratio": apart / together }))
}
