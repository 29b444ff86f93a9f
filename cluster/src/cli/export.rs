//! `cluster export MODEL DIR`: a model as a directory that transformers loads, adapters merged into it.
use super::{CliError, Exit, json_line};
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineError};
use cohort_model::{DtypeKind, ModelFiles, SaveDtype, WeightSet};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// builtin://order-desk, a directory (a checkpoint too, or an adapter in PEFT's layout), a .gguf file or hf://org/name
    model: String,
    /// Directory to write; it must not be there yet
    directory: PathBuf,
    /// Number format of the file's weights
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    dtype: DtypeKind,
    /// Print as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    directory: String,
    parameters: usize,
    merged: bool,
    weights_sha256: String,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let place = args.directory.display().to_string();
    if args.directory.exists() {
        return Err(CliError::new(Exit::Usage, format!("{place} is there already; name a directory to make")));
    }
    let files = ModelFiles::open(&args.model)?;
    let weights = merged(&files)?;
    let dtype = match args.dtype {
        DtypeKind::F32 => SaveDtype::F32,
        DtypeKind::Bf16 => SaveDtype::Bf16,
    };
    files.save_whole(&args.directory, &weights, dtype)?;
    let report = Report {
        directory: place,
        parameters: files.spec.parameters(),
        merged: files.lora().is_some(),
        weights_sha256: weights.sha256(),
    };
    if args.json {
        json_line(out, &report)?;
    } else {
        let what = if report.merged { ", adapters merged" } else { "" };
        writeln!(out, "{}: {} parameters{what}\nweights {}", report.directory, report.parameters, report.weights_sha256)?;
    }
    Ok(Exit::Success)
}

/// The weights that the model computes with.
fn merged(files: &ModelFiles) -> Result<WeightSet, CliError> {
    let weights = files.weights()?;
    let Some(lora) = files.lora() else { return Ok(weights) };
    let adapters = files.start(0)?;
    let merge = || -> Result<WeightSet, EngineError> {
        let mut engine = NativeEngine::new(files.spec.clone(), 0, 0)?.adapted(lora, &weights)?;
        engine.import(&adapters)?;
        engine.merged()
    };
    Ok(merge()?)
}
