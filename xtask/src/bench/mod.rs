//! `cargo xtask bench`: the engine's work as ratios to this machine's own ceilings.
//!
//! One object on stdout's last line with `--json`. Figures are medians of at least five runs of a release build.
//! `decode` runs the rollout path (scheduler, sampling, log-probs) and leaves the prefill out; its `token_sha256` are those
//! that `cluster generate --greedy --ignore-eos --max-new-tokens 64` gives for the same prompts (`--prompts-out`). `bench/peers/peer.py` does the same work in
//! PyTorch, transformers and TRL.
mod bare_stream;
mod ceilings;
mod decode;
mod deltas;
mod grpo;
mod learn;
mod prefix;
mod spread;
mod weights;

use anyhow::{Context, Result, bail};
use clap::Args;
use cohort_engine::candle::{CandleEngine, gpus};
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineHandle, EngineOptions};
use cohort_model::{DecoderSpec, DeviceKind, DtypeKind, ModelFiles, Quantization};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Print one JSON object on the last line.
    #[arg(long)]
    json: bool,
    /// Only these, comma separated: decode, prefill, train, grpo, prefix, weights, spread.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Number format of matrix products: f32 or bf16.
    #[arg(long, default_value = "f32")]
    dtype: DtypeKind,
    /// Number format of the products of sampling: none (as --dtype) or int8.
    #[arg(long, default_value = "none")]
    quantization: Quantization,
    /// Where to compute: cpu, or cuda, which needs a build with `--features cuda` and says SKIPPED without a GPU.
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    /// Model: directory, GGUF file or `builtin://order-desk`.
    #[arg(long)]
    model: Option<String>,
    /// Compute threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Runs of each figure; the median is given.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only this batch of decode: 1, 8, 16 or 32; on a GPU also 64.
    #[arg(long, value_parser = ["1", "8", "16", "32", "64"])]
    batch: Option<String>,
    /// Write the decode prompts as input for `cluster generate`.
    #[arg(long)]
    prompts_out: Option<PathBuf>,
}

/// A model ready to be measured.
pub(crate) struct Subject {
    pub(crate) spec: DecoderSpec,
    pub(crate) threads: usize,
    pub(crate) dtype: DtypeKind,
    quantization: Quantization,
    pub(crate) device: DeviceKind,
    pub(crate) runs: usize,
    pub(crate) batch: Option<usize>,
    files: ModelFiles,
}

impl Subject {
    /// An engine of its own with the model's weights.
    pub(crate) fn engine(&self) -> Result<EngineHandle> {
        self.recording_engine(0)
    }

    /// One that keeps what sampling computes, as far as so many megabytes go, as a run's does where it learns and samples.
    pub(crate) fn recording_engine(&self, megabytes: usize) -> Result<EngineHandle> {
        let (spec, threads, weights) = (self.spec.clone(), self.threads, self.files.weights()?);
        let (dtype, device, quantization) = (self.dtype, self.device, self.quantization);
        let make = move || {
            let mut engine: Box<dyn Backend> = match device {
                DeviceKind::Cpu => {
                    let engine = NativeEngine::new(spec, threads, 2 << 30)?.of(dtype).sampling(quantization);
                    Box::new(engine.recording(megabytes << 20))
                }
                DeviceKind::Cuda => Box::new(CandleEngine::new(spec, device, 2 << 30)?),
            };
            engine.import(&weights)?;
            Ok(engine)
        };
        Ok(EngineHandle::start(make, EngineOptions::default())?)
    }

    /// Prompts of pseudo-random tokens that depend on nothing but their place. `rows x len`
    pub(crate) fn prompts(&self, rows: usize, len: usize) -> Vec<Vec<u32>> {
        let vocab = self.spec.vocab as u64;
        let (low, high) = (vocab / 500, vocab - vocab / 10);
        let token = |i: u64| (low + i.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) % (high - low)) as u32;
        (0..rows).map(|r| (0..len).map(|t| token((r * len + t + 1) as u64)).collect()).collect()
    }

    /// Bytes that a weight of a matrix takes where sampling reads it.
    pub(crate) fn weight_bytes(&self) -> f64 {
        match (self.quantization, self.dtype) {
            (Quantization::Int8, _) => 36.0 / 32.0,
            (Quantization::None, DtypeKind::F32) => 4.0,
            (Quantization::None, DtypeKind::Bf16) => 2.0,
        }
    }

    /// Floating-point operations of one token's forward pass through the matrices.
    pub(crate) fn flops_a_token(&self) -> f64 {
        let matrices: usize =
            self.spec.tensors().iter().filter(|t| t.shape.len() == 2).map(|t| t.shape.iter().product::<usize>()).sum();
        // An untied embedding is looked up, not multiplied.
        let looked_up = if self.spec.tied_embeddings { 0 } else { self.spec.vocab * self.spec.hidden };
        2.0 * (matrices - looked_up) as f64
    }
}

/// Runs what was asked for.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if cfg!(debug_assertions) {
        bail!("a debug build is not measured: use `cargo xtask bench`, which builds in release");
    }
    const ALL: [&str; 7] = ["decode", "prefill", "train", "grpo", "prefix", "weights", "spread"];
    if let Some(unknown) = args.only.iter().find(|o| !ALL.contains(&o.as_str())) {
        bail!("--only {unknown}: expected some of {}", ALL.join(", "));
    }
    let device = if args.device == "cuda" { DeviceKind::Cuda } else { DeviceKind::Cpu };
    if device == DeviceKind::Cuda
        && let Some(reason) = no_gpu(args)?
    {
        eprintln!("SKIPPED: nothing was measured on a GPU: {reason}");
        if args.json {
            println!("{}", json!({ "device": "cuda", "skipped": reason }));
        }
        return Ok(());
    }
    let model = args.model.clone().unwrap_or_else(default_model);
    let files = ModelFiles::open(&model).with_context(|| format!("--model {model}"))?;
    let batch = args.batch.as_deref().map(str::parse).transpose()?;
    let subject = Subject {
        spec: files.spec.clone(),
        threads: args.threads,
        dtype: args.dtype,
        quantization: args.quantization,
        device,
        runs: args.runs.max(5),
        batch,
        files,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|o| o == name);
    let mut report = Map::new();
    report.insert("model".into(), json!(model));
    report.insert("threads".into(), json!(args.threads));
    report.insert("dtype".into(), json!(args.dtype.name()));
    report.insert("quantization".into(), json!(args.quantization.name()));
    report.insert("device".into(), json!(args.device));
    let mut add = |name: &str, value: Value| {
        eprintln!("{name}: {value}");
        report.insert(name.into(), value);
    };
    if wanted("decode") {
        add("decode", runtime.block_on(decode::decode(&subject, args.prompts_out.as_deref()))?);
    }
    if wanted("prefill") {
        add("prefill", runtime.block_on(decode::prefill(&subject))?);
    }
    if wanted("train") {
        add("train", runtime.block_on(learn::train(&subject))?);
    }
    if wanted("weights") {
        add("weights", runtime.block_on(weights::on_one_host(&subject))?);
    }
    if wanted("spread") {
        let hosts = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        add("spread", hosts.block_on(spread::between_hosts(&subject))?);
    }
    if wanted("prefix") {
        add("prefix", runtime.block_on(prefix::sharing(&subject))?);
    }
    if wanted("grpo") {
        add("grpo", runtime.block_on(grpo::step(&subject))?);
    }
    if device == DeviceKind::Cpu {
        report.insert("ceilings".into(), ceilings::measure(args.threads));
    }
    if args.json {
        println!("{}", Value::Object(report));
    }
    Ok(())
}

/// Why there is nothing to measure on a GPU here.
fn no_gpu(args: &BenchArgs) -> Result<Option<String>> {
    if args.dtype != DtypeKind::F32 || args.quantization != Quantization::None {
        let given = format!("--dtype {} --quantization {}", args.dtype.name(), args.quantization.name());
        bail!("--device cuda {given}: the candle engine computes in f32");
    }
    Ok(match gpus() {
        Ok(0) => Some("no GPU".into()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    })
}

/// The fetched real model where it is, else the embedded one.
fn default_model() -> String {
    std::fs::read_dir("models")
        .ok()
        .and_then(|dir| dir.flatten().map(|e| e.path()).find(|p| p.extension().is_some_and(|x| x == "gguf")))
        .map_or_else(|| "builtin://order-desk".into(), |p| p.display().to_string())
}

/// Seconds of each of `runs` calls after one warm-up; the median.
pub(crate) fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Seconds since `start`.
pub(crate) fn since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

/// Seconds since this process was started.
pub(crate) fn age() -> f64 {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    // Behind the name in parentheses the start is the 20th field, in ticks of 10 ms since the machine started.
    let stat = read("/proc/self/stat");
    let started = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)?.parse::<f64>().ok());
    let up = read("/proc/uptime").split_whitespace().next().and_then(|s| s.parse::<f64>().ok());
    up.zip(started).map_or(f64::NAN, |(up, started)| up - started / 100.0)
}

/// Peak resident memory of this process so far, MiB.
pub(crate) fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}
