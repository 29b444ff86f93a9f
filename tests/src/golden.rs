//! Readers of tests/golden: numbers from PyTorch and transformers. Each file names the script that makes it.
use anyhow::{Context, Result, bail, ensure};
use cohort_engine::{PackedBatch, PackedSequence};
use cohort_model::hf::{self, spec_from_config};
use cohort_model::lora::Adapter;
use cohort_model::safetensors_file::read_file;
use cohort_model::{DecoderSpec, Lora, ModelFiles, WeightSet};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The real model's file.
const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// A tiny random model of transformers with everything that it computes (make_tiny_models.py).
#[derive(Debug, Clone)]
pub struct TinyModel {
    /// Its architecture.
    pub spec: DecoderSpec,
    /// Its weights.
    pub weights: WeightSet,
    /// What it was run on and what came out.
    pub sequences: Vec<GoldenSequence>,
    /// Under the file's names, gradients of `sum(weight * logp + weight_entropy * entropy)` over all sequences.
    pub gradients: WeightSet,
}

/// One sequence of a [`TinyModel`].
#[derive(Debug, Clone)]
pub struct GoldenSequence {
    /// The tokens. `[T]`
    pub tokens: Vec<u32>,
    /// Logits are divided by it before the log-softmax.
    pub temperature: f32,
    /// Logits at every position. `[T * V]`
    pub logits: Vec<f32>,
    /// Log-probs of tokens 1 and later. `[T - 1]`
    pub logp: Vec<f32>,
    /// Entropies of the same distributions. `[T - 1]`
    pub entropy: Vec<f32>,
    /// dL/dlogp. `[T - 1]`
    pub weight: Vec<f32>,
    /// dL/dentropy. `[T - 1]`
    pub weight_entropy: Vec<f32>,
}

impl TinyModel {
    /// All that there are, by name.
    pub const NAMES: [&str; 8] = ["llama_tied", "llama_untied", "mistral", "qwen2", "qwen3", "qwen3_tied", "gpt2", "gpt2_untied"];

    /// Reads one of [`TinyModel::NAMES`].
    pub fn open(name: &str) -> Result<Self> {
        let dir = golden_dir().join(format!("tiny_{name}"));
        let config: serde_json::Map<String, Value> = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
        let spec = spec_from_config(&config, "config.json")?;
        let weights = hf::canonical(&spec, read_file(&dir.join("model.safetensors"))?)?;
        let mut golden = read_file(&dir.join("golden.safetensors"))?;
        let mut sequences = Vec::new();
        while golden.0.contains_key(&format!("tokens.{}", sequences.len())) {
            let i = sequences.len();
            let mut take = |what: &str| golden.0.remove(&format!("{what}.{i}")).map(|t| t.data).context(format!("{what}.{i}"));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
            sequences.push(GoldenSequence {
                tokens: take("tokens")?.into_iter().map(|t| t as u32).collect(),
                temperature: *take("temperature")?.first().context("temperature")?,
                logits: take("logits")?,
                logp: take("logp")?,
                entropy: take("entropy")?,
                weight: take("weight")?,
                weight_entropy: take("weight_h")?,
            });
        }
        let named = golden.0.into_iter().filter_map(|(name, t)| Some((name.strip_prefix("grad.")?.to_owned(), t)));
        let gradients = WeightSet(named.collect());
        hf::canonical(&spec, gradients.clone())?;
        Ok(Self { spec, weights, sequences, gradients })
    }

    /// All sequences as one batch, with every token but the first as target.
    #[must_use]
    pub fn batch(&self) -> PackedBatch {
        let sequence = |s: &GoldenSequence| PackedSequence {
            tokens: s.tokens.clone(),
            targets: (1..s.tokens.len() as u32).collect(),
            temperature: s.temperature,
            shared: 0,
        };
        PackedBatch { sequences: self.sequences.iter().map(sequence).collect() }
    }

    /// A value of all sequences, one after the other.
    #[must_use]
    pub fn all(&self, value: impl Fn(&GoldenSequence) -> &Vec<f32>) -> Vec<f32> {
        self.sequences.iter().flat_map(|s| value(s).clone()).collect()
    }
}

/// Adapters that PEFT made beside a [`TinyModel`], with what it computes (make_tiny_lora.py).
#[derive(Debug, Clone)]
pub struct TinyLora {
    /// The frozen model, and what it was run on.
    pub model: TinyModel,
    /// The adapters' settings.
    pub lora: Lora,
    /// Their values.
    pub adapters: WeightSet,
    /// Logits of all sequences at every position.
    pub logits: Vec<f32>,
    /// Log-probs of all sequences.
    pub logp: Vec<f32>,
    /// Gradients of `sum(weight * logp)` by the adapters.
    pub gradients: WeightSet,
}

impl TinyLora {
    /// All that there are, by the model's name.
    pub const NAMES: [&str; 2] = ["llama_untied", "qwen2"];

    /// Reads one of [`TinyLora::NAMES`].
    pub fn open(name: &str) -> Result<Self> {
        let model = TinyModel::open(name)?;
        let dir = golden_dir().join(format!("tiny_{name}/lora"));
        let lora = Lora::of(&Adapter::open(&dir)?.config, &model.spec, name)?;
        let adapters = Adapter::weights(&dir, &lora, &model.spec)?;
        let mut golden = read_file(&dir.join("golden.safetensors"))?;
        let mut all = |what: &str| {
            let of = |i| golden.0.remove(&format!("{what}.{i}")).map(|t| t.data).context(format!("{what}.{i}"));
            Ok::<_, anyhow::Error>((0..model.sequences.len()).map(of).collect::<Result<Vec<_>>>()?.concat())
        };
        let (logits, logp) = (all("logits")?, all("logp")?);
        let named = golden.0.into_iter().filter_map(|(name, t)| Some((name.strip_prefix("grad.")?.to_owned(), t)));
        let gradients = WeightSet(named.collect());
        gradients.fits(&lora.tensors(&model.spec))?;
        Ok(Self { model, lora, adapters, logits, logp, gradients })
    }
}

/// One prompt through SmolLM2 (make_smollm2_golden.py).
#[derive(Debug, Clone)]
pub struct GoldenPrompt {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Log-probs of tokens 1 and later.
    pub logp: Vec<f32>,
    /// The highest logits after the last token: token and value, highest first.
    pub top: Vec<(u32, f32)>,
    /// What the model says next, greedily, up to its end token; empty for most prompts.
    pub greedy: Vec<u32>,
}

/// All prompts of smollm2_logits.json.
pub fn smollm2_prompts() -> Result<Vec<GoldenPrompt>> {
    let json = read_json("smollm2_logits.json")?;
    let prompts = json["prompts"].as_array().context("prompts")?;
    let prompt = |row: &Value| {
        Ok(GoldenPrompt {
            text: row["text"].as_str().context("text")?.to_owned(),
            ids: ids(&row["ids"])?,
            logp: floats(&row["logp"])?,
            top: ids(&row["top_ids"])?.into_iter().zip(floats(&row["top_logits"])?).collect(),
            greedy: if row["greedy"].is_null() { Vec::new() } else { ids(&row["greedy"])? },
        })
    };
    prompts.iter().map(prompt).collect()
}

/// Texts and their ids of smollm2_tokenizer.json (make_tokenizer_golden.py).
pub fn smollm2_strings() -> Result<Vec<(String, Vec<u32>)>> {
    let json = read_json("smollm2_tokenizer.json")?;
    let rows = json["strings"].as_array().context("strings")?;
    rows.iter().map(|row| Ok((row[0].as_str().context("text")?.to_owned(), ids(&row[1])?))).collect()
}

/// Where the real model's file lies, or would.
#[must_use]
pub fn smollm2_path() -> PathBuf {
    let models = std::env::var_os("COHORT_MODELS").map_or_else(|| root().join("models"), PathBuf::from);
    models.join(SMOLLM2)
}

/// The real model. Without its file a test that needs it says so and passes; with `COHORT_REQUIRE_MODEL=1` it fails.
pub fn smollm2(test: &str) -> Result<Option<ModelFiles>> {
    let path = smollm2_path();
    if path.is_file() {
        return Ok(Some(ModelFiles::open(path.to_str().context("path is not UTF-8")?)?));
    }
    if std::env::var("COHORT_REQUIRE_MODEL").is_ok_and(|v| v == "1") {
        bail!("{test} needs {}, and COHORT_REQUIRE_MODEL=1: run scripts/fetch_model.sh", path.display());
    }
    eprintln!("SKIPPED {test}: {} is not there; run scripts/fetch_model.sh", path.display());
    Ok(None)
}

/// Relative distance of two sets of tensors: the worst tensor's name and `|a - b| / |b|`.
pub fn worst_tensor(a: &WeightSet, b: &WeightSet) -> Result<(String, f64)> {
    ensure!(a.0.keys().eq(b.0.keys()), "different tensors");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let mut worst = (String::new(), 0.0);
    for (name, b) in &b.0 {
        let a = &a.0[name];
        ensure!(a.shape == b.shape, "{name}: shapes {:?} and {:?}", a.shape, b.shape);
        let off = norm(&mut a.data.iter().zip(&b.data).map(|(x, y)| f64::from(*x) - f64::from(*y)));
        let size = norm(&mut b.data.iter().map(|y| f64::from(*y)));
        ensure!(off.is_finite(), "{name} is not finite");
        let relative = if off == 0.0 { 0.0 } else { off / size };
        if relative >= worst.1 {
            worst = (name.clone(), relative);
        }
    }
    Ok(worst)
}

/// Largest absolute difference.
#[must_use]
pub fn worst_value(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "different numbers of values");
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) })
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn golden_dir() -> PathBuf {
    root().join("tests/golden")
}

fn read_json(name: &str) -> Result<Value> {
    let path = golden_dir().join(name);
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn ids(value: &Value) -> Result<Vec<u32>> {
    let ids = value.as_array().context("ids")?.iter();
    ids.map(|id| Ok(u32::try_from(id.as_u64().context("id")?)?)).collect()
}

fn floats(value: &Value) -> Result<Vec<f32>> {
    #[expect(clippy::cast_possible_truncation, reason = "written from f32")]
    value.as_array().context("numbers")?.iter().map(|x| Ok(x.as_f64().context("number")? as f32)).collect()
}
