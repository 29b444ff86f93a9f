//! Passes over the whole network: appending to key/value memories, and log-probs of packed sequences.
use super::block::{self, Batch, Memory, Model};
use super::kv::KvStore;
use super::norm::{self, Place};
use super::workspace::{Kept, Workspace};
use crate::{EngineError, Extend, KvId, PackedSequence};
use cohort_kernels::Buffer;
use cohort_kernels::head::{self, Target};
use cohort_kernels::linear::{self, Output, Projection};
use cohort_kernels::logprob::RowStats;

/// Rows of a pass without gradients: long prompts are cut, which changes no bits (B1) and bounds memory.
pub(super) const PASS_ROWS: usize = 1024;

/// What the backward pass needs of the ends of the network.
pub(super) struct Pending {
    pub(super) batch: Batch,
    /// Row of the hidden state that predicts each target.
    pub(super) rows: Vec<usize>,
    pub(super) targets: Vec<Target>,
    pub(super) stats: Vec<RowStats>,
    /// Those rows before and after the last norm. `[targets, hidden]`
    pub(super) stream: Buffer,
    pub(super) hidden: Buffer,
    pub(super) rstd: Vec<f32>,
}

/// Log-prob and entropy of each target.
pub(super) struct Scores {
    pub(super) logp: Vec<f32>,
    pub(super) entropy: Vec<f32>,
}

/// Runs sequences through the network. With `kept`, the blocks' activations stay there and the rest is returned. `keys` are
/// those of each sequence's draws, or none.
pub(super) fn score(
    model: Model<'_>,
    work: &mut Workspace,
    sequences: &[PackedSequence],
    mut kept: Option<&mut Kept>,
    keys: &[u64],
) -> (Scores, Pending) {
    let (mut batch, mut keys) = (Batch::new(), keys.iter());
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    // Of a family that the caller cut, the first one left is computed whole, and later ones share what it shared.
    let (mut family, mut common) = (0, 0);
    for sequence in sequences {
        let first = batch.rows();
        let shared = if sequence.shared as usize <= common { sequence.shared as usize } else { 0 };
        if shared == 0 {
            family = first;
            common = if sequence.shared == 0 { sequence.tokens.len() } else { sequence.shared as usize };
        }
        for target in &sequence.targets {
            let from = *target as usize - 1;
            rows.push(if from < shared { family + from } else { first + from - shared });
            targets.push(Target { token: sequence.tokens[*target as usize], temperature: sequence.temperature });
        }
        batch.push(&sequence.tokens[shared..], shared, (shared > 0).then_some(family));
        if let Some(key) = keys.next() {
            batch.key(*key);
        }
    }
    work.reserve(model, batch.rows(), kept.is_some());
    if let Some(kept) = &mut kept {
        kept.reserve_all(model, batch.rows());
    }
    block::embed(model, &batch, work.stream(model, batch.rows()));
    for layer in 0..model.spec.layers {
        if let Some(kept) = &mut kept {
            kept.enter(layer, work.stream(model, batch.rows()));
        }
        let (x, pages, mut activations) = work.split(model, batch.rows(), kept.as_mut().map(|kept| (&mut **kept, layer)));
        block::forward(model, layer, &batch, &mut Memory::Layer(pages), x, &mut activations);
    }
    let (stream, hidden, rstd) = last_norm(model, &work.x, &rows);
    let head = (model.head(), model.spec.vocab);
    let scored = head::forward(model.cpu, &mut work.head, (&hidden, model.spec.hidden), head, &targets);
    let scores = Scores {
        logp: scored.iter().map(|(_, logp)| *logp).collect(),
        entropy: scored.iter().map(|(stats, _)| stats.entropy).collect(),
    };
    let stats = scored.into_iter().map(|(stats, _)| stats).collect();
    (scores, Pending { batch, rows, targets, stats, stream, hidden, rstd })
}

/// Chosen rows of the residual stream, the same after the last norm, and its scales.
fn last_norm(model: Model<'_>, x: &[f32], rows: &[usize]) -> (Buffer, Buffer, Vec<f32>) {
    let width = model.spec.hidden;
    let mut stream = Buffer::zeroed(rows.len() * width);
    for (target, row) in stream.chunks_exact_mut(width).zip(rows) {
        target.copy_from_slice(&x[row * width..][..width]);
    }
    let (mut hidden, mut rstd) = (Buffer::zeroed(rows.len() * width), vec![0.0; rows.len()]);
    norm::forward(model, Place::Final, &stream, &mut hidden, &mut rstd);
    (stream, hidden, rstd)
}

/// Part of the work of an `extend`: what goes through the network together.
struct Pass {
    batch: Batch,
    memories: Vec<KvId>,
    /// Rows whose logits are wanted.
    last: Vec<usize>,
}

/// Cuts the work into passes of at most [`PASS_ROWS`] rows; each memory occurs in a pass at most once.
fn passes(kv: &KvStore, work: &[Extend<'_>]) -> Vec<Pass> {
    let empty = || Pass { batch: Batch::new(), memories: Vec::new(), last: Vec::new() };
    let mut passes = Vec::new();
    let mut pass = empty();
    for item in work {
        let (mut start, mut tokens) = (kv.len(item.kv), item.tokens);
        while !tokens.is_empty() {
            if pass.batch.rows() == PASS_ROWS {
                passes.push(std::mem::replace(&mut pass, empty()));
            }
            let (now, later) = tokens.split_at(tokens.len().min(PASS_ROWS - pass.batch.rows()));
            pass.batch.push(now, start, None);
            pass.memories.push(item.kv);
            if later.is_empty() {
                pass.last.push(pass.batch.rows() - 1);
            }
            (start, tokens) = (start + now.len(), later);
        }
    }
    passes.push(pass);
    passes
}

/// Appends checked work to memories that have the pages for it; logits as in [`Backend::extend`](crate::Backend::extend).
pub(super) fn extend(
    model: Model<'_>,
    space: &mut Workspace,
    kv: &mut KvStore,
    work: &[Extend<'_>],
    logits: &mut [f32],
) -> Result<(), EngineError> {
    let mut rest = &mut *logits;
    for pass in passes(kv, work) {
        let rows = pass.batch.rows();
        space.reserve(model, rows, false);
        block::embed(model, &pass.batch, space.stream(model, rows));
        let mut pages: Vec<_> = pass.memories.iter().map(|id| kv.take(*id)).collect();
        for layer in 0..model.spec.layers {
            let (x, _, mut activations) = space.split(model, rows, None);
            block::forward(model, layer, &pass.batch, &mut Memory::Pages(&mut pages), x, &mut activations);
        }
        pass.memories.iter().zip(pages).for_each(|(id, pages)| kv.put_back(*id, pages));
        let (_, hidden, _) = last_norm(model, &space.x, &pass.last);
        let (y, others) = rest.split_at_mut(pass.last.len() * model.spec.vocab);
        rest = others;
        let head = Projection { weight: model.head(), out: model.spec.vocab, y };
        linear::forward(model.cpu, &hidden, model.spec.hidden, Output::Set, &mut [head]);
    }
    if let Some(row) = logits.chunks_exact(model.spec.vocab).position(|row| !finite(row)) {
        return Err(EngineError::NonFinite(format!(
            "logits after token {} of item {row} are not finite; the weights are broken: load the last good ones",
            kv.len(work[row].kv) + work[row].tokens.len()
        )));
    }
    work.iter().for_each(|item| kv.commit(item.kv, item.tokens.len()));
    Ok(())
}

/// Whether no value is NaN or infinite.
pub(super) fn finite(values: &[f32]) -> bool {
    values.iter().fold(0, |most, value| (value.to_bits() & 0x7fff_ffff).max(most)) < 0x7f80_0000
}
