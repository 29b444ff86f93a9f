//! The compute of the policy: parameters, KV blocks, forward, backward, sampling, owned once per process and device.
//! Roles hold an [`EngineHandle`] over a bounded queue, never a weight tensor.
//!
//! Two engines stand behind the [`Backend`] seam: `native` (CPU, explicit backward, batch-invariant) and `candle`
//! (parity reference on the CPU, CUDA in the feature build); `stub` stands in for a model in plumbing tests.
//!
//! Files: `backend` the seam; `input` what a call may be given; `handle` the roles' side; `driver` the engine's thread; `scheduler` who is in the next step, `beginnings` what
//! its sequences have in common;
//! `sampler` one token from logits; `stream` tokens as they come; `fabric` between the devices of several engines; `partition` which part of an optimizer's state an engine keeps; `parts` weights on their way out; `ring` weights by version, in memory or shared by a host; `stub` canned text.

/// Whether this build can compute on a CUDA device.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

pub mod backend;
mod beginnings;
pub mod candle;
mod driver;
pub mod fabric;
pub mod handle;
mod input;
pub mod native;
pub mod partition;
mod parts;
pub mod ring;
pub mod sampler;
pub mod scheduler;
pub mod stream;
pub mod stub;
mod watched;

pub use backend::{AdamW, Backend, Done, EngineError, Extend, Forward, KvId, PackedBatch, PackedSequence, Scored, Upstream};
pub use cohort_kernels::sampling::{Penalties, Truncation};
pub use handle::{Completion, EngineHandle, EngineOptions, Label, Session, Span};
pub use partition::Partition;
pub use parts::{Part, Visit, WeightSource};
pub use ring::{HeldRing, LocalRing, RingError, SharedRing, SlotImage, WeightRing};
pub use sampler::{BadSampling, Constraint, Decoding, DrawKey, StopWatch};
pub use scheduler::Finish;
pub use stream::{Sampled, TokenStream};
