//! Architecture descriptions, tokenizers, chat templates, weights in and out. No compute.
//!
//! Invariants
//! - **M1** canonical weights are Hugging Face names, shapes `[out, in]` and rotate-half RoPE order, whatever file they came from.
//! - **M2** a file's header is checked (lengths, shapes, dtypes, offsets) before anything is allocated for it.
//! - **M3** the weights hash is over name, shape, dtype and little-endian bytes of the tensors sorted by name.

pub mod spec;
pub mod weights;

pub use spec::DecoderSpec;
pub use weights::{Tensor, WeightSet};
