//! A model and an engine for the subcommands that compute without a run.
use super::{CliError, Exit};
use crate::preflight::{Need, available_memory, memory_text};
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineError, EngineHandle, EngineOptions};
use cohort_model::{DecoderSpec, DtypeKind, ModelFiles, Quantization};

/// Which model, and how it is computed.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ModelArgs {
    /// builtin://order-desk, a directory (a checkpoint too), a .gguf file or hf://org/name
    #[arg(long)]
    model: String,
    /// Number format of matrix products: f32 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    dtype: DtypeKind,
    /// Number format of the products of sampling: none (as --dtype) or int8; see rollout.quantization
    #[arg(long, value_name = "FORMAT", default_value = "none")]
    quantization: Quantization,
    /// Compute threads; 0 takes all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: u16,
}

/// A model that is ready to compute.
pub(super) struct Opened {
    /// What it is.
    pub files: ModelFiles,
    /// Its engine, with the weights in it.
    pub engine: EngineHandle,
}

impl ModelArgs {
    /// Opens the model without its weights.
    pub(super) fn files(&self) -> Result<ModelFiles, CliError> {
        if self.model.starts_with("stub://") {
            let why = format!("{} has no model behind it: nothing can be computed with it", self.model);
            return Err(CliError::new(Exit::Model, why));
        }
        Ok(ModelFiles::open(&self.model)?)
    }

    /// Starts an engine with the model's weights in it.
    pub(super) fn open(&self, files: ModelFiles, options: EngineOptions) -> Result<Opened, CliError> {
        let (spec, threads) = (files.spec.clone(), usize::from(self.threads));
        let (dtype, quantization) = (self.dtype, self.quantization);
        let kv_bytes = kv_budget(&spec, (dtype, quantization), options.max_running)?;
        let weights = files.weights()?;
        let adapters = files.lora().map(|lora| Ok::<_, CliError>((lora.clone(), files.start(0)?))).transpose()?;
        let make = move || -> Result<Box<dyn Backend>, EngineError> {
            let engine = NativeEngine::new(spec, threads, kv_bytes)?.of(dtype).sampling(quantization);
            let mut engine = match &adapters {
                Some((lora, _)) => engine.adapted(lora, &weights)?,
                None => engine.for_sampling(),
            };
            engine.import(adapters.as_ref().map_or(&weights, |(_, values)| values))?;
            Ok(Box::new(engine))
        };
        Ok(Opened { files, engine: EngineHandle::start(make, options)? })
    }
}

/// Bytes for keys and values: every running sequence at full context, at most half of what is left beside the weights.
fn kv_budget(spec: &DecoderSpec, formats: (DtypeKind, Quantization), running: usize) -> Result<usize, CliError> {
    let need = Need::of(spec, 0, running as u64 * spec.max_context as u64);
    let Some(available) = available_memory() else { return Ok(usize::try_from(need.kv).unwrap_or(usize::MAX)) };
    let weights = Need::weights_of_sampler(spec, formats);
    let Some(left) = available.checked_sub(weights) else {
        let (needs, has) = (memory_text(weights), memory_text(available));
        return Err(CliError::new(
            Exit::Compute,
            format!("the weights need {needs} of memory, {has} are free; choose a smaller model"),
        ));
    };
    Ok(usize::try_from(need.kv.min(left / 2)).unwrap_or(usize::MAX))
}

/// A runtime for a command that waits for one engine.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|e| CliError::new(Exit::Io, format!("cannot start the runtime: {e}")))
}
