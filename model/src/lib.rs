//! Architecture descriptions, tokenizers, chat templates, weights in and out. No compute.
//!
//! Invariants
//! - **M1** canonical weights are Llama's names in Hugging Face files, shapes `[out, in]` and rotate-half RoPE order, whatever file they came from.
//! - **M2** a file's header is checked (lengths, shapes, dtypes, offsets) before anything is allocated for it.
//! - **M3** the weights hash is over name, shape, dtype and little-endian bytes of the tensors sorted by name.
//!
//! [`ModelFiles::open`] is the way in: a directory ([`hf`]), a GGUF file ([`gguf`]), the model hub, the embedded model
//! ([`builtin`]) or random weights ([`init`]). [`ModelFiles::save`] is the way out.

pub mod builtin;
pub mod chat;
pub mod config;
mod error;
pub mod family;
pub mod gguf;
pub mod hash;
pub mod hf;
mod hub;
pub mod init;
mod limits;
mod load;
pub mod lora;
pub mod safetensors_file;
mod save;
pub mod spec;
mod stored;
pub mod tokenizer;
pub mod weights;

pub use chat::{ChatMessage, ChatTemplate};
pub use config::{DeviceKind, DtypeKind, EngineKind, ModelConfig, Quantization};
pub use error::ModelError;
pub use family::Family;
pub use hash::{TensorDigest, set_digest};
pub use load::ModelFiles;
pub use lora::{Lora, LoraConfig};
pub use safetensors_file::SaveDtype;
pub use spec::DecoderSpec;
pub use tokenizer::{Detokenizer, Tokenizer};
pub use weights::{Tensor, WeightSet};
