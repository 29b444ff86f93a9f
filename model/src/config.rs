//! The `[model]` section of the configuration.
use crate::lora::{LoraConfig, LoraConfigError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which model is trained, and what computes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Where the model comes from: `builtin://order-desk` (default), a Hugging Face directory, a `.gguf` file,
    /// `hf://org/name`, `random://tiny?seed=0` (tests) or `stub://name` (no model: scripted answers).
    pub path: String,
    /// What computes it: `native` (default; CPU, exact) or `candle` (parity reference on the CPU; needed for CUDA).
    pub engine: EngineKind,
    /// Number format of matrix products: `f32` (default), or `bf16`: their factors rounded to bf16 and summed up in f32, on
    /// parameters, gradients and moments in f32. Needs `engine = "native"`. Part of the run's numerics.
    pub dtype: DtypeKind,
    /// Where it is computed: `cpu` (default) or `cuda` (needs `engine = "candle"` and a CUDA build).
    pub device: DeviceKind,
    /// Train low-rank adapters beside the frozen model instead of the model itself. Needs `engine = "native"`.
    pub lora: Option<LoraConfig>,
}

/// An engine by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Own kernels on the CPU.
    #[default]
    Native,
    /// candle.
    Candle,
}

impl EngineKind {
    /// The name that the configuration takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Candle => "candle",
        }
    }
}

/// A number format by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DtypeKind {
    /// IEEE single precision.
    #[default]
    F32,
    /// Factors of products in bf16, sums and parameters in f32.
    Bf16,
}

impl DtypeKind {
    /// The name that the configuration and `--dtype` take.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl std::str::FromStr for DtypeKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::F32, Self::Bf16]
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| format!("no dtype {name:?}; there are f32 and bf16"))
    }
}

/// A number format of sampling by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// That of the model's products.
    #[default]
    None,
    /// Weights and activations in int8, groups of 32 with a scale each.
    Int8,
}

impl Quantization {
    /// The name that the configuration and `--quantization` take.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Int8 => "int8",
        }
    }
}

impl std::str::FromStr for Quantization {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::None, Self::Int8]
            .into_iter()
            .find(|quantization| quantization.name() == name)
            .ok_or_else(|| format!("no quantization {name:?}; there are none and int8"))
    }
}

/// A device by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The host's processor.
    #[default]
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

impl DeviceKind {
    /// The name that the configuration takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Settings that exclude each other.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ModelConfigError {
    /// The native engine has no GPU kernels.
    #[error("model.device = \"cuda\" needs model.engine = \"candle\": the native engine computes on the CPU")]
    NativeOnCuda,
    /// The candle engine computes in f32.
    #[error("model.dtype = \"bf16\" needs model.engine = \"native\": the candle engine computes in f32")]
    CandleInBf16,
    /// Adapters are the native engine's.
    #[error("model.lora needs model.engine = \"native\" and a model that computes: {0} trains no adapters")]
    LoraElsewhere(&'static str),
    /// The adapters' settings.
    #[error(transparent)]
    Lora(#[from] LoraConfigError),
    /// No path.
    #[error("model.path is empty: give builtin://order-desk, a directory, a .gguf file or hf://org/name")]
    EmptyPath,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            path: "builtin://order-desk".to_owned(),
            engine: EngineKind::Native,
            dtype: DtypeKind::F32,
            device: DeviceKind::Cpu,
            lora: None,
        }
    }
}

impl ModelConfig {
    /// Refuses combinations that cannot run.
    pub fn check(&self) -> Result<(), ModelConfigError> {
        if self.path.trim().is_empty() {
            return Err(ModelConfigError::EmptyPath);
        }
        if self.engine == EngineKind::Native && self.device == DeviceKind::Cuda {
            return Err(ModelConfigError::NativeOnCuda);
        }
        if self.engine == EngineKind::Candle && self.dtype == DtypeKind::Bf16 {
            return Err(ModelConfigError::CandleInBf16);
        }
        if let Some(lora) = &self.lora {
            lora.check()?;
            if self.engine == EngineKind::Candle {
                return Err(ModelConfigError::LoraElsewhere("the candle engine"));
            }
            if self.path.starts_with("stub://") {
                return Err(ModelConfigError::LoraElsewhere("a stub"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_usable_and_exclusive_settings_are_refused() {
        assert_eq!(ModelConfig::default().check(), Ok(()));
        let on_gpu = ModelConfig { device: DeviceKind::Cuda, ..ModelConfig::default() };
        assert_eq!(on_gpu.check(), Err(ModelConfigError::NativeOnCuda));
        let in_bf16 = ModelConfig { dtype: DtypeKind::Bf16, ..ModelConfig::default() };
        assert_eq!(in_bf16.check(), Ok(()));
        assert_eq!(ModelConfig { engine: EngineKind::Candle, ..in_bf16.clone() }.check(), Err(ModelConfigError::CandleInBf16));
        assert_eq!(ModelConfig { engine: EngineKind::Candle, ..on_gpu.clone() }.check(), Ok(()));
        let adapted = ModelConfig { lora: Some(LoraConfig::default()), ..ModelConfig::default() };
        assert_eq!(adapted.check(), Ok(()));
        let elsewhere = ModelConfig { engine: EngineKind::Candle, ..adapted.clone() };
        assert_eq!(elsewhere.check(), Err(ModelConfigError::LoraElsewhere("the candle engine")));
        let wrong = ModelConfig { lora: Some(LoraConfig { rank: 0, ..LoraConfig::default() }), ..adapted };
        assert!(wrong.check().unwrap_err().to_string().contains("model.lora.rank = 0"));
        assert_eq!(ModelConfig { path: " ".into(), ..ModelConfig::default() }.check(), Err(ModelConfigError::EmptyPath));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = serde_json::from_str::<ModelConfig>(r#"{"path":"x","dtypo":"f32"}"#).unwrap_err();
        assert!(error.to_string().contains("dtypo"), "{error}");
    }
}
