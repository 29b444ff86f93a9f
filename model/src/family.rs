//! The families of decoders, and what their blocks differ in.
use serde::{Deserialize, Serialize};

/// Whose network it is, by the name that its files carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama and SmolLM2.
    Llama,
    /// Mistral: Llama's network; its window is a limit of the context here.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// GPT-2.
    Gpt2,
}

/// What a family's blocks are made of, beside what all have in common: a residual stream, a norm before causal
/// grouped-query attention and one before the MLP, a last norm, an output projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// The norms of the residual stream.
    pub norm: Norm,
    /// How a token's place enters.
    pub positions: Positions,
    /// Which projections add a bias.
    pub biases: Biases,
    /// Queries and keys are normalised head by head before they are turned (2302.05442).
    pub head_norms: bool,
    /// The MLP.
    pub mlp: Mlp,
}

/// A norm's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Root-mean-square norm (1910.07467), a weight only.
    Rms,
    /// Layer norm (1607.06450), weight and bias.
    Layer,
}

/// How a token's place enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Queries and keys are turned (2104.09864).
    Rotary,
    /// A learned vector a position is added to the embedding.
    Learned,
}

/// Projections that add a vector to their result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Biases {
    /// None does.
    None,
    /// Those to queries, keys and values.
    QueryKeyValue,
    /// All of a block.
    All,
}

/// An MLP's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate x) * up x)` (2002.05202).
    SwiGlu,
    /// `down(gelu(up x))`, GELU by its tanh form (1606.08415).
    Gelu,
}

/// What Llama's blocks are made of.
const LLAMA: Traits =
    Traits { norm: Norm::Rms, positions: Positions::Rotary, biases: Biases::None, head_norms: false, mlp: Mlp::SwiGlu };

impl Family {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Gpt2];

    /// The table of the families.
    #[must_use]
    pub const fn traits(self) -> Traits {
        match self {
            Self::Llama | Self::Mistral => LLAMA,
            Self::Qwen2 => Traits { biases: Biases::QueryKeyValue, ..LLAMA },
            Self::Qwen3 => Traits { head_norms: true, ..LLAMA },
            Self::Gpt2 => {
                Traits { norm: Norm::Layer, positions: Positions::Learned, biases: Biases::All, mlp: Mlp::Gelu, ..LLAMA }
            }
        }
    }

    /// `model_type` of a config.json and `general.architecture` of a GGUF file (where Mistral is a llama).
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gpt2 => "gpt2",
        }
    }

    /// transformers' class, as `architectures` of a config.json names it.
    #[must_use]
    pub const fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gpt2 => "GPT2LMHeadModel",
        }
    }
}
