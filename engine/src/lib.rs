//! The compute of the policy: parameters, KV blocks, forward, backward, sampling, owned once per process and device.
//! Roles hold an [`EngineHandle`](handle::EngineHandle) over a bounded queue, never a weight tensor.
//!
//! Two engines stand behind the [`Backend`] seam: `native` (CPU, explicit backward, batch-invariant) and `candle`
//! (parity reference on the CPU, CUDA in the feature build).

pub mod backend;

pub use backend::{AdamW, Backend, EngineError, Extend, Forward, KvId, PackedBatch, PackedSequence, Upstream};
