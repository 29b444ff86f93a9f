//! The one seam between algorithms and compute: forward to log-probs, backward from their gradients.
//!
//! Invariants of every native path (see DESIGN "batch-invariant numerics"):
//! - **B1** `extend` and `forward` give one token's log-prob the same bits whatever else is in the batch, however the
//!   tokens were cut into calls, and for any number of threads; between the two where [`Backend::is_exact`].
//! - **B2** `backward` and `update` are deterministic for equal inputs in equal order, for any number of threads.
//! - **B3** a failed call leaves weights, moments and KV as they were before it.
use crate::Partition;
use crate::parts::{self, Visit, WeightSource};
use cohort_kernels::logprob::RowStats;
use cohort_model::spec::TensorSpec;
use cohort_model::{DecoderSpec, WeightSet};
use std::ops::{ControlFlow, Range};
use thiserror::Error;

/// A sequence's key/value memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvId(pub u32);

/// Tokens to append to one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Extend<'a> {
    /// Whose memory.
    pub kv: KvId,
    /// Tokens to append, at least one; logits are wanted for the last of them.
    pub tokens: &'a [u32],
}

/// One sequence of a training batch.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedSequence {
    /// All tokens of the context. `[T]`
    pub tokens: Vec<u32>,
    /// Positions `t >= 1` whose token's log-prob is wanted (given tokens `..t`), ascending.
    pub targets: Vec<u32>,
    /// Logits are divided by this before the log-softmax.
    pub temperature: f32,
    /// The first so many tokens are those of the last sequence before it with 0 here, its family's first, and may be computed
    /// with it once. No more than that one's tokens or the first target. Changes no log-prob; gradients add up in another
    /// order.
    pub shared: u32,
}

/// Sequences computed together, without padding; they never see each other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PackedBatch {
    /// The sequences.
    pub sequences: Vec<PackedSequence>,
}

impl PackedBatch {
    /// Tokens of all sequences, each beginning that is shared counted once.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.tokens.len() - (s.shared as usize).min(s.tokens.len())).sum()
    }

    /// Targets of all sequences: the length of [`Forward::logp`].
    #[must_use]
    pub fn targets(&self) -> usize {
        self.sequences.iter().map(|s| s.targets.len()).sum()
    }
}

/// Values per target, sequences one after the other. `[N]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Forward {
    /// log-softmax(logits / temperature) of the target token, natural log.
    pub logp: Vec<f32>,
    /// Entropy of the same distribution, nats.
    pub entropy: Vec<f32>,
    /// Tokens of a training pass that were not computed for it: sampling had kept what their blocks computed.
    pub recalled: usize,
}

/// What sampling found of the logits after a sequence's last token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The token that was drawn.
    pub token: u32,
    /// Its log-softmax(logits / temperature), natural log.
    pub logp: f32,
    /// Of the whole row of logits, with the temperature.
    pub stats: RowStats,
}

/// Gradients of a scalar loss with respect to [`Forward`]'s values. `[N]`
#[derive(Debug, Clone, Copy)]
pub struct Upstream<'a> {
    /// dL/dlogp.
    pub d_logp: &'a [f32],
    /// dL/dentropy, where the loss has an entropy term.
    pub d_entropy: Option<&'a [f32]>,
}

/// AdamW with decoupled weight decay (1711.05101), bias-corrected; decay applies to matrices only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay, times the learning rate.
    pub weight_decay: f64,
}

/// Why an engine call failed.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum EngineError {
    /// The input is wrong; the same call will fail again.
    #[error("{0}")]
    Input(String),
    /// No memory for another sequence or batch now; drop or wait.
    #[error("{0}")]
    Capacity(String),
    /// A value is not finite; the step must not be taken.
    #[error("{0}")]
    NonFinite(String),
    /// The device or its library failed.
    #[error("{0}")]
    Device(String),
    /// The engine's thread is gone.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
}

/// Shown all gradients and the range that a backward pass is done with, see [`Backend::backward_in_order`].
pub type Done<'a> = &'a mut dyn FnMut(&mut [f32], Range<usize>) -> ControlFlow<()>;

/// A model on a device. Calls block; the engine's thread owns it.
pub trait Backend: Send {
    /// The architecture.
    fn spec(&self) -> &DecoderSpec;
    /// Kernel path, dtype and whatever else decides bits, one line.
    fn numerics(&self) -> String;
    /// Whether a log-prob that [`Backend::extend`] leads to is the one that a learner's [`Backend::forward`] gives under the same
    /// weights, to the bit. Where it is not, sampled tokens are marked so ([`crate::Span::exact`]).
    fn is_exact(&self) -> bool {
        true
    }
    /// Runs `task(0..tasks)`, each once, on the engine's threads; without any, one after the other.
    fn each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }

    /// Replaces all weights (canonical layout, checked). KV memories keep their old keys and values: close them first.
    fn import(&mut self, weights: &WeightSet) -> Result<(), EngineError>;
    /// As [`Backend::import`] for who knows the set's [digest](WeightSet::digest) already.
    fn import_named(&mut self, weights: &WeightSet, digest: u64) -> Result<(), EngineError> {
        let _known_to_the_caller = digest;
        self.import(weights)
    }
    /// All weights in the canonical layout, f32.
    fn export(&self) -> Result<WeightSet, EngineError>;
    /// Names and shapes of what [`Backend::export`] gives.
    fn tensors(&self) -> Result<Vec<TensorSpec>, EngineError> {
        Ok(WeightSource::tensors(&self.export()?))
    }
    /// Shows all weights in the canonical layout, in parts and from several threads where the engine can.
    fn each_part(&self, visit: Visit<'_>) -> Result<(), EngineError> {
        parts::whole(&self.export()?, visit);
        Ok(())
    }
    /// Their fast digest: that of [`Backend::export`].
    fn digest(&self) -> Result<u64, EngineError> {
        parts::digest(self)
    }

    /// A fresh, empty KV memory.
    fn kv_open(&mut self) -> Result<KvId, EngineError>;
    /// A memory that begins with the first `len` tokens of another, which may stand in memory once. Errors:
    /// [`EngineError::Input`] when that one holds fewer.
    fn kv_fork(&mut self, from: KvId, len: usize) -> Result<KvId, EngineError>;
    /// Tokens it holds.
    fn kv_len(&self, kv: KvId) -> usize;
    /// Forgets everything past the first `len` tokens.
    fn kv_truncate(&mut self, kv: KvId, len: usize);
    /// Frees it.
    fn kv_close(&mut self, kv: KvId);
    /// Appends tokens to each sequence and writes the logits after its last token: `logits[i * vocab..][..vocab]` for
    /// `work[i]`. A `KvId` may occur once. Errors: [`EngineError::Capacity`] past `max_context` or out of memory.
    fn extend(&mut self, work: &[Extend<'_>], logits: &mut [f32]) -> Result<(), EngineError>;

    /// Tells an engine that keeps what sampling computes what was drawn after the last token of each memory.
    fn note_scored(&mut self, scored: &[(KvId, Scored)]) {
        let _ = scored;
    }
    /// Makes the next training passes compute all that they need, whatever sampling kept, and frees that.
    fn forget_sampling(&mut self) {}

    /// Whether a training pass draws at random (dropout of adapters), so that its log-probs are not those of sampling.
    fn draws(&self) -> bool {
        false
    }
    /// Keys of the draws of the next training pass, one a sequence; without them it draws nothing.
    fn key_draws(&mut self, keys: &[u64]) {
        let _ = keys;
    }
    /// Log-probs and entropies of all targets. With `train`, keeps what one following [`Backend::backward`] needs.
    fn forward(&mut self, batch: &PackedBatch, train: bool) -> Result<Forward, EngineError>;
    /// Adds the gradients of the last `forward(.., true)` to the accumulated ones.
    fn backward(&mut self, upstream: Upstream<'_>) -> Result<(), EngineError>;
    /// Where the gradients lie, among all that [`Backend::each_gradient`] shows in one bucket, in the order in which a backward pass is
    /// done with them: the same in every engine of equal numerics and architecture. Empty: all at its end.
    fn gradient_order(&self) -> Vec<Range<usize>> {
        Vec::new()
    }
    /// [`Backend::backward`] of the last pass before the gradients are read: when it is done with a range of
    /// [`Backend::gradient_order`], `done` is shown all of them and that range. It may change what the pass is done with, and
    /// break the pass off, after which the gradients are of no use.
    fn backward_in_order(&mut self, upstream: Upstream<'_>, done: Done<'_>) -> Result<(), EngineError> {
        let _ = done;
        self.backward(upstream)
    }
    /// Sets accumulated gradients to zero.
    fn zero_grad(&mut self);
    /// Global L2 norm of the accumulated gradients (sum in f64 in a fixed order).
    fn grad_norm(&mut self) -> Result<f64, EngineError>;
    /// One optimizer step on gradients times `grad_scale`, then zeroes them. Refuses non-finite gradients untouched.
    fn update(&mut self, optimizer: &AdamW, lr: f64, grad_scale: f64) -> Result<(), EngineError>;
    /// Shows the accumulated gradients, to be read or replaced, until `visit` breaks off: bucket by bucket, as this engine
    /// lays them out, in an order that is the same in every engine of equal numerics and architecture.
    fn each_gradient(&mut self, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError>;
    /// Accumulated gradients in the canonical layout (tests, inspection).
    fn gradients(&self) -> Result<WeightSet, EngineError>;
    /// First and second moments in the canonical layout and the number of updates done.
    fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64), EngineError>;
    /// Takes moments and update count back.
    fn optimizer_import(&mut self, first: &WeightSet, second: &WeightSet, updates: u64) -> Result<(), EngineError>;
    /// Moments and update count as before the first update, of all parameters.
    fn optimizer_reset(&mut self) -> Result<(), EngineError> {
        let mut zeros = self.export()?;
        zeros.0.values_mut().for_each(|tensor| tensor.data.fill(0.0));
        self.optimizer_import(&zeros, &zeros, 0)
    }

    /// Updates done.
    fn updates(&self) -> u64;
    /// The part of the optimizer's state that is kept: all of it, unless [`Backend::keep_partition`] or
    /// [`Backend::take_partition`] says otherwise. Importing and resetting make it whole again; where it is not whole,
    /// [`Backend::update`] and [`Backend::optimizer_export`] are refused.
    fn partition(&self) -> Partition {
        Partition::WHOLE
    }
    /// Keeps this part of a whole state from now on, and frees the rest.
    fn keep_partition(&mut self, part: Partition) -> Result<(), EngineError> {
        undivided(part)
    }
    /// Replaces the optimizer's state by this part of one after so many updates. Where there were any, `fill` writes the
    /// values of its first, then of its second moments, bucket by bucket, until it breaks off.
    fn take_partition(
        &mut self,
        part: Partition,
        updates: u64,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let _ = (updates, fill);
        undivided(part)
    }
    /// Shows a part of the moments that are kept, as [`Backend::take_partition`] has them written; nothing before the first update.
    fn each_moment(&mut self, part: Partition, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(), EngineError> {
        let _ = visit;
        undivided(part)
    }
    /// [`Backend::optimizer_export`] of a state that several ranks keep: `fill` is shown first moments, then second ones, bucket
    /// by bucket, with the own part in place, and writes the others, until it breaks off; what is given is then of no use. The
    /// gradients must be zero: their memory is used.
    fn optimizer_gather(
        &mut self,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(WeightSet, WeightSet, u64), EngineError> {
        let _ = fill;
        self.optimizer_export()
    }
    /// [`Backend::update`] of a state that several ranks keep: changes the weights of its part and has `exchange` write those of the
    /// other parts, bucket by bucket, until it breaks off. The weights are then no version's. An error is before any change.
    fn update_partition(
        &mut self,
        optimizer: &AdamW,
        lr: f64,
        grad_scale: f64,
        exchange: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let _ = exchange;
        self.update(optimizer, lr, grad_scale)
    }
}

/// What an engine that knows no parts says of one.
fn undivided(part: Partition) -> Result<(), EngineError> {
    if part == Partition::WHOLE {
        return Ok(());
    }
    Err(EngineError::Input("this engine keeps the optimizer's state whole: set training.shard_optimizer = false".into()))
}

/// What an engine that keeps a part says where the whole is wanted.
pub(crate) fn divided(part: Partition, what: &str) -> Result<(), EngineError> {
    if part == Partition::WHOLE {
        return Ok(());
    }
    let (rank, of) = (part.rank(), part.of());
    Err(EngineError::Input(format!(
        "{what} of an engine that keeps part {rank} of {of} of the optimizer's state: gather it first"
    )))
}
