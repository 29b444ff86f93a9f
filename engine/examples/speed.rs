//! Speed and memory of the native engine on the shapes of SmolLM2-135M with random weights:
//! `cargo run --release -p cohort-engine --example speed [threads] [dtype] [quantization] [parts]` (0 or nothing: all cores,
//! f32, none, `prefill,1,8,16,32,train`; a number is a batch to decode).
//!
//! Prints tokens per second (median of several rounds) of decoding with sampling, of prefill, and of a training step of
//! 8 sequences of 128 tokens (forward, backward, AdamW), and the peak resident memory of each phase.
#![expect(clippy::print_stdout, reason = "a report for the terminal")]
use cohort_engine::native::NativeEngine;
use cohort_engine::{AdamW, Backend, EngineError, Extend, KvId, PackedBatch, PackedSequence, Upstream};
use cohort_kernels::{Path, logprob, sampling};
use cohort_model::{DecoderSpec, DtypeKind, Quantization, Tensor, WeightSet};
use std::time::Instant;

const ROUNDS: usize = 5;

fn main() -> Result<(), EngineError> {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let dtype: DtypeKind = args.next().unwrap_or_else(|| "f32".into()).parse().map_err(EngineError::Input)?;
    let quantization: Quantization = args.next().unwrap_or_else(|| "none".into()).parse().map_err(EngineError::Input)?;
    let parts = args.next().unwrap_or_else(|| "prefill,1,8,16,32,train".into());
    let wanted = |part: &str| parts.split(',').any(|one| one == part);
    let spec = smollm2();
    let mut engine = NativeEngine::new(spec.clone(), threads, 1 << 30)?.of(dtype).sampling(quantization);
    engine.import(&random_weights(&spec))?;
    println!("{} parameters, path {}, {}", spec.parameters(), Path::detect(), engine.numerics());
    forget_peak();
    if wanted("prefill") {
        prefill(&mut engine)?;
    }
    for batch in parts.split(',').filter_map(|part| part.parse().ok()) {
        decode(&mut engine, batch)?;
    }
    println!("peak resident memory of a sampler: {} MiB", peak_mib());
    if wanted("train") {
        train(&mut engine)?;
        println!("peak resident memory with training: {} MiB", peak_mib());
    }
    Ok(())
}

fn smollm2() -> DecoderSpec {
    DecoderSpec {
        family: cohort_model::Family::Llama,
        hidden: 576,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        vocab: 49_152,
        max_context: 8192,
        norm_eps: 1e-5,
        rope_theta: 100_000.0,
        tied_embeddings: true,
    }
}

fn random_weights(spec: &DecoderSpec) -> WeightSet {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut tensor = |shape: &[usize]| match shape {
        [_, inner] => (0..shape.iter().product()).map(|_| next() / (*inner as f32).sqrt()).collect(),
        _ => vec![1.0; shape.iter().product()],
    };
    WeightSet(spec.tensors().into_iter().map(|t| (t.name, Tensor { data: tensor(&t.shape), shape: t.shape })).collect())
}

fn tokens(count: usize, salt: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + salt * 104_729) % 49_152) as u32).collect()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn prefill(engine: &mut NativeEngine) -> Result<(), EngineError> {
    let prompt = tokens(512, 1);
    let mut logits = vec![0.0; engine.spec().vocab];
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        let kv = engine.kv_open()?;
        let start = Instant::now();
        engine.extend(&[Extend { kv, tokens: &prompt }], &mut logits)?;
        seconds.push(start.elapsed().as_secs_f64());
        engine.kv_close(kv);
    }
    println!("prefill of 512: {:.0} tokens/s", 512.0 / median(seconds));
    Ok(())
}

fn decode(engine: &mut NativeEngine, batch: usize) -> Result<(), EngineError> {
    const STEPS: usize = 16;
    let vocab = engine.spec().vocab;
    let memories = (0..batch).map(|_| engine.kv_open()).collect::<Result<Vec<KvId>, _>>()?;
    let prompts: Vec<_> = (0..batch).map(|i| tokens(32, i)).collect();
    let mut logits = vec![0.0; batch * vocab];
    let work: Vec<_> = memories.iter().zip(&prompts).map(|(kv, tokens)| Extend { kv: *kv, tokens }).collect();
    engine.extend(&work, &mut logits)?;
    let mut seconds = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        for step in 0..STEPS {
            let draw = |(index, row): (usize, &[f32])| {
                let stats = logprob::row(Path::detect(), row, 1.0);
                let position = (round * STEPS + step) as u32;
                let key = sampling::Draw { group: 0, sample: index as u16, position, purpose: 0 };
                let token = sampling::categorical(Path::detect(), row, &stats, sampling::uniform(1, key));
                assert!(stats.logp(row[token as usize]).is_finite());
                [token]
            };
            let next: Vec<_> = logits.chunks(vocab).enumerate().map(draw).collect();
            let work: Vec<_> = memories.iter().zip(&next).map(|(kv, tokens)| Extend { kv: *kv, tokens }).collect();
            engine.extend(&work, &mut logits)?;
        }
        seconds.push(start.elapsed().as_secs_f64());
    }
    memories.into_iter().for_each(|kv| engine.kv_close(kv));
    println!("decode, batch {batch}: {:.0} tokens/s", (batch * STEPS) as f64 / median(seconds));
    Ok(())
}

fn train(engine: &mut NativeEngine) -> Result<(), EngineError> {
    let sequence = |salt| PackedSequence { tokens: tokens(128, salt), targets: (1..128).collect(), temperature: 1.0, shared: 0 };
    let batch = PackedBatch { sequences: (0..8).map(sequence).collect() };
    let upstream = vec![-1.0 / batch.targets() as f32; batch.targets()];
    let optimizer = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
    let mut phases = [Vec::new(), Vec::new(), Vec::new()];
    // The first round pays for fresh memory and is left out.
    for round in 0..=ROUNDS {
        let mut start = Instant::now();
        let mut lap = |phase: &mut Vec<f64>| {
            if round > 0 {
                phase.push(start.elapsed().as_secs_f64());
            }
            start = Instant::now();
        };
        engine.forward(&batch, true)?;
        lap(&mut phases[0]);
        engine.backward(Upstream { d_logp: &upstream, d_entropy: None })?;
        lap(&mut phases[1]);
        engine.update(&optimizer, 1e-5, 1.0)?;
        lap(&mut phases[2]);
    }
    let total: Vec<f64> = (0..ROUNDS).map(|round| phases.iter().map(|phase| phase[round]).sum()).collect();
    let [forward, backward, update] = phases.map(median);
    println!(
        "training step 8 x 128: {:.0} tokens/s (forward {forward:.3} s, backward {backward:.3} s, update {update:.3} s)",
        1024.0 / median(total)
    );
    Ok(())
}

/// Starts a new peak; where the system does not offer it, the peak is that of the whole process.
fn forget_peak() {
    if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
        println!("peaks include loading ({error})");
    }
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}
