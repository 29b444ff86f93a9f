//! Low-rank adapters (2106.09685): beside a frozen matrix `W [out, in]` two small ones, `A [r, in]` and `B [out, r]`; the
//! model computes with `W + (alpha / r) B A`.
//!
//! Names, shapes and defaults are those of PEFT. Files: `config` the settings; `peft` directories.
mod config;
mod peft;

pub use config::{LoraConfig, LoraConfigError};
pub use peft::{Adapter, is_adapter};
pub(crate) use peft::{CONFIG, save};

use crate::family::Family;
use crate::init::uniform;
use crate::spec::TensorSpec;
use crate::{DecoderSpec, ModelError, Tensor, WeightSet};

/// A projection that may have an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Attention's output.
    Output,
    /// The MLP's gate.
    Gate,
    /// The MLP's first projection.
    Up,
    /// The MLP's last projection.
    Down,
}

impl Target {
    /// All of them, in forward order.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The module's own name, as `target_modules` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The module's path in a block.
    fn path(self) -> String {
        let parent = match self {
            Self::Query | Self::Key | Self::Value | Self::Output => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        };
        format!("{parent}.{}", self.name())
    }

    /// `[out, in]` of the frozen matrix.
    #[must_use]
    pub fn shape(self, spec: &DecoderSpec) -> (usize, usize) {
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        match self {
            Self::Query => (q, spec.hidden),
            Self::Key | Self::Value => (kv, spec.hidden),
            Self::Output => (spec.hidden, q),
            Self::Gate | Self::Up => (spec.intermediate, spec.hidden),
            Self::Down => (spec.hidden, spec.intermediate),
        }
    }

    /// Canonical name of the frozen matrix.
    #[must_use]
    pub fn weight(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.weight", self.path())
    }

    /// Names of A and B in one block, PEFT's.
    #[must_use]
    pub fn adapters(self, layer: usize) -> [String; 2] {
        ["lora_A", "lora_B"].map(|which| format!("base_model.model.model.layers.{layer}.{}.{which}.weight", self.path()))
    }
}

/// Adapters of a given architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Width of the bottleneck, `r`.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Probability that an input of an adapter is dropped in training.
    pub dropout: f64,
    /// Which projections have one, in forward order.
    pub targets: Vec<Target>,
}

impl Lora {
    /// The settings for an architecture; `place` names them in errors.
    ///
    /// Errors: a rank, dropout or module that cannot be.
    pub fn of(config: &LoraConfig, spec: &DecoderSpec, place: &str) -> Result<Self, ModelError> {
        config.check().map_err(|e| ModelError::Value {
            place: place.to_owned(),
            key: e.key.to_owned(),
            value: e.value,
            problem: e.problem.to_owned(),
        })?;
        if spec.family == Family::Gpt2 {
            return Err(ModelError::Architecture {
                place: place.to_owned(),
                found: "GPT-2 with LoRA".to_owned(),
                remedy: "its fused projections have no adapters here; take a Llama, Mistral or Qwen, or train it whole"
                    .to_owned(),
            });
        }
        Ok(Self {
            rank: config.rank as usize,
            alpha: config.alpha,
            dropout: config.dropout,
            targets: config.targets().map_err(|(value, problem)| ModelError::Value {
                place: place.to_owned(),
                key: "target_modules".to_owned(),
                value,
                problem,
            })?,
        })
    }

    /// `alpha / r`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// Every adapter in forward order, A before B.
    #[must_use]
    pub fn tensors(&self, spec: &DecoderSpec) -> Vec<TensorSpec> {
        let places = (0..spec.layers).flat_map(|layer| self.targets.iter().map(move |target| (layer, *target)));
        let both = |(layer, target): (usize, Target)| {
            let (out, inner) = target.shape(spec);
            let [a, b] = target.adapters(layer);
            [TensorSpec { name: a, shape: vec![self.rank, inner] }, TensorSpec { name: b, shape: vec![out, self.rank] }]
        };
        places.flat_map(both).collect()
    }

    /// Adapters to train from: B zero, so that the model is the frozen one, and A uniform in `±1 / sqrt(in)`, which is what
    /// PEFT's `kaiming_uniform_(a=sqrt(5))` comes to. Keyed by (seed, name, index).
    #[must_use]
    pub fn initial(&self, spec: &DecoderSpec, seed: u64) -> WeightSet {
        let fill = |t: TensorSpec| {
            let len = t.shape.iter().product();
            let data = match t.shape[..] {
                [_, inner] if t.name.ends_with("lora_A.weight") => uniform(seed, &t.name, len, 1.0 / (inner as f32).sqrt()),
                _ => vec![0.0; len],
            };
            (t.name, Tensor { shape: t.shape, data })
        };
        WeightSet(self.tensors(spec).into_iter().map(fill).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelFiles;

    fn lora(config: LoraConfig) -> Result<Lora, String> {
        let spec = ModelFiles::open("random://tiny?seed=0").unwrap().spec;
        Lora::of(&config, &spec, "model.lora").map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_pefts() {
        let lora = lora(LoraConfig::default()).unwrap();
        assert_eq!((lora.rank, lora.scale(), lora.dropout), (8, 1.0, 0.0));
        assert_eq!(lora.targets, [Target::Query, Target::Value]);
    }

    #[test]
    fn the_first_adapters_change_nothing_and_are_spread_evenly() {
        let spec = ModelFiles::open("random://tiny?seed=0").unwrap().spec;
        let lora = lora(LoraConfig { target_modules: vec!["all-linear".into()], rank: 40, ..LoraConfig::default() }).unwrap();
        assert_eq!(lora.targets, Target::ALL);
        let start = lora.initial(&spec, 7);
        start.fits(&lora.tensors(&spec)).unwrap();
        assert_eq!(start, lora.initial(&spec, 7));
        assert_ne!(start, lora.initial(&spec, 8));
        for (name, tensor) in &start.0 {
            if name.ends_with("lora_B.weight") {
                assert!(tensor.data.iter().all(|x| *x == 0.0));
                continue;
            }
            let bound = 1.0 / (tensor.shape[1] as f64).sqrt();
            let n = tensor.data.len() as f64;
            let moment = |k: i32| tensor.data.iter().map(|x| (f64::from(*x) / bound).powi(k)).sum::<f64>() / n;
            assert!(tensor.data.iter().all(|x| f64::from(x.abs()) <= bound * 1.000_001));
            assert!(moment(1).abs() < 0.06 && (moment(2) - 1.0 / 3.0).abs() < 0.04, "{name}: {} {}", moment(1), moment(2));
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let of = |change: fn(&mut LoraConfig)| {
            let mut config = LoraConfig::default();
            change(&mut config);
            lora(config).unwrap_err()
        };
        assert!(of(|c| c.rank = 0).contains("rank = 0"));
        assert!(of(|c| c.dropout = 1.0).contains("dropout = 1"));
        assert!(of(|c| c.alpha = f64::NAN).contains("alpha = NaN"));
        assert!(of(|c| c.target_modules = vec!["c_attn".into()]).contains("target_modules = c_attn"));
        assert!(of(|c| c.target_modules.clear()).contains("target_modules = "));
        let gpt2 = ModelFiles::open("random://tiny-gpt2?seed=0").unwrap().spec;
        assert!(Lora::of(&LoraConfig::default(), &gpt2, "model.lora").unwrap_err().to_string().contains("GPT-2 with LoRA"));
    }
}
