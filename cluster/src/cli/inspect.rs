//! `cluster inspect MODEL`.
use super::{CliError, Exit, json_line};
use crate::preflight::{Need, memory_text};
use cohort_model::family::Positions;
use cohort_model::{DecoderSpec, ModelFiles};
use serde::Serialize;
use std::io::Write;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// builtin://order-desk, a directory, a .gguf file or hf://org/name
    model: String,
    /// Also read every value: the weights' SHA-256, and that all are finite
    #[arg(long)]
    weights: bool,
    /// Print as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a str,
    parameters: usize,
    spec: &'a DecoderSpec,
    tokens: usize,
    eos: Vec<Named>,
    bos: Option<Named>,
    chat_template: bool,
    inference_bytes: u64,
    training_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    non_finite: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Named {
    id: u32,
    token: Option<String>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let files = ModelFiles::open(&args.model)?;
    let named = |id: u32| Named { id, token: files.tokenizer.token(id) };
    let need = Need::of(&files.spec, 0, 0);
    let mut report = Report {
        model: &files.source,
        parameters: files.spec.parameters(),
        spec: &files.spec,
        tokens: files.tokenizer.vocab_size(),
        eos: files.eos.iter().map(|&id| named(id)).collect(),
        bos: files.bos.map(named),
        chat_template: files.chat.is_some(),
        inference_bytes: need.parameters,
        training_bytes: need.total(),
        weights_sha256: None,
        non_finite: None,
    };
    if args.weights {
        let weights = files.weights()?;
        let odd = weights.0.values().map(|t| t.data.iter().filter(|x| !x.is_finite()).count()).sum();
        report.weights_sha256 = Some(weights.sha256());
        report.non_finite = Some(odd);
    }
    if args.json {
        json_line(out, &report)?
    } else {
        text(&report, out)?
    }
    Ok(if report.non_finite.unwrap_or(0) > 0 { Exit::Negative } else { Exit::Success })
}

fn text(report: &Report<'_>, out: &mut dyn Write) -> Result<(), CliError> {
    let s = report.spec;
    writeln!(out, "{}", report.model)?;
    writeln!(out, "  parameters     {} ({})", report.parameters, short(report.parameters))?;
    writeln!(out, "  family         {}", s.family.model_type())?;
    writeln!(out, "  blocks         {} of width {}, MLP {}", s.layers, s.hidden, s.intermediate)?;
    writeln!(out, "  attention      {} heads of {}, {} key/value heads", s.heads, s.head_dim, s.kv_heads)?;
    let positions = match s.family.traits().positions {
        Positions::Rotary => format!("RoPE base {}", s.rope_theta),
        Positions::Learned => "learned positions".to_owned(),
    };
    writeln!(out, "  context        {} tokens, {positions}", s.max_context)?;
    let tied = if s.tied_embeddings { "tied" } else { "untied" };
    writeln!(out, "  vocabulary     {} ({} in the tokenizer), embeddings {tied}", s.vocab, report.tokens)?;
    let names: Vec<String> = report.eos.iter().map(|e| format!("{} ({})", e.token.as_deref().unwrap_or("?"), e.id)).collect();
    writeln!(out, "  ends with      {}", if names.is_empty() { "nothing".to_owned() } else { names.join(", ") })?;
    writeln!(out, "  chat template  {}", if report.chat_template { "yes" } else { "no" })?;
    let (inference, training) = (memory_text(report.inference_bytes), memory_text(report.training_bytes));
    writeln!(out, "  memory in f32  {inference} to generate, {training} to train, besides activations and keys/values")?;
    if let Some(hash) = &report.weights_sha256 {
        writeln!(out, "  weights        sha256 {hash}")?;
        writeln!(out, "  not finite     {} values", report.non_finite.unwrap_or(0))?;
    }
    Ok(())
}

fn short(parameters: usize) -> String {
    let millions = parameters as f64 / 1e6;
    if millions >= 1000.0 { format!("{:.2}B", millions / 1000.0) } else { format!("{millions:.2}M") }
}
