//! Passes over the whole network: appending to key/value memories, and log-probs of packed sequences.
use super::block::{self, Batch, Memory, Model};
use super::kv::KvStore;
use super::norm::{self, Place};
use super::packing::Packed;
use super::record::{self, Record};
use super::workspace::{Keeping, Kept, Workspace};
use crate::{EngineError, Extend, KvId, PackedSequence};
use cohort_kernels::Buffer;
use cohort_kernels::head::{self, Target};
use cohort_kernels::linear::{self, Output, Projection};
use cohort_kernels::logprob::RowStats;
use std::collections::HashMap;

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
    /// Where sampling kept what the blocks computed of each row, if it was not computed for this pass.
    pub(super) recalled: Option<Vec<usize>>,
}

/// Log-prob and entropy of each target.
pub(super) struct Scores {
    pub(super) logp: Vec<f32>,
    pub(super) entropy: Vec<f32>,
}

impl Scores {
    fn new(scored: &[(RowStats, f32)]) -> Self {
        Self {
            logp: scored.iter().map(|(_, logp)| *logp).collect(),
            entropy: scored.iter().map(|(stats, _)| stats.entropy).collect(),
        }
    }
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
    let Packed { batch, rows, targets, .. } = Packed::new(sequences, keys);
    match &mut kept {
        Some(kept) => {
            work.reserve(model, batch.rows());
            kept.reserve_all(model, batch.rows());
        }
        None => work.reserve_passing(model, batch.rows(), false),
    }
    block::embed(model, &batch, work.stream(model, batch.rows()));
    for layer in 0..model.spec.layers {
        if let Some(kept) = &mut kept {
            kept.enter(layer, work.stream(model, batch.rows()));
        }
        let keeping = kept.as_mut().map_or(Keeping::Nothing, |kept| Keeping::Block(kept, layer));
        let (x, pages, mut activations) = work.split(model, batch.rows(), keeping);
        block::forward(model, layer, &batch, &mut Memory::Layer(pages), x, &mut activations);
    }
    let width = model.spec.hidden;
    let Ends { stream, hidden, rstd } = Ends::new(model, rows.iter().map(|row| &work.x[row * width..][..width]));
    let scored = head::forward(model.cpu, &mut work.head, (&hidden, width), (model.head(), model.spec.vocab), &targets);
    let scores = Scores::new(&scored);
    let stats = scored.into_iter().map(|(stats, _)| stats).collect();
    (scores, Pending { batch, rows, targets, stats, stream, hidden, rstd, recalled: None })
}

/// What a pass of training needs, from what sampling kept of its rows; `None` where it kept not all of them.
pub(super) fn recall(
    model: Model<'_>,
    work: &mut Workspace,
    record: &Record,
    sequences: &[PackedSequence],
) -> Option<(Scores, Pending)> {
    let needed = |sequence: &PackedSequence| sequence.targets.last().map_or(0, |last| *last as usize);
    let Packed { batch, parts, rows, targets } = Packed::new(sequences, &[]);
    let ends: HashMap<usize, usize> = parts.iter().map(|part| (part.sequence, part.end)).collect();
    let find = |(index, sequence): (usize, &PackedSequence)| {
        let end = ends.get(&index).map_or(needed(sequence), |end| needed(sequence).max(*end));
        record.find(&sequence.tokens[..end])
    };
    let found: Vec<&[usize]> = sequences.iter().enumerate().map(find).collect::<Option<_>>()?;
    let recalled: Vec<usize> = parts.iter().flat_map(|part| found[part.sequence][part.start..part.end].iter().copied()).collect();
    // Each target's own row knows what was drawn after it; the family's has the same stream.
    let own = sequences.iter().zip(&found).flat_map(|(s, rows)| s.targets.iter().map(|target| rows[*target as usize - 1]));
    let own: Vec<usize> = own.collect();
    let Ends { stream, hidden, rstd } = Ends::new(model, own.iter().map(|row| record.stream(*row)));
    let drawn = |(row, target): (&usize, &Target)| {
        let scored = record.drawn(*row)?;
        let same = scored.token == target.token && scored.stats.temperature.to_bits() == target.temperature.to_bits();
        same.then_some((scored.stats, scored.logp))
    };
    let scored = own.iter().zip(&targets).map(drawn).collect::<Option<Vec<_>>>().unwrap_or_else(|| {
        head::forward(model.cpu, &mut work.head, (&hidden, model.spec.hidden), (model.head(), model.spec.vocab), &targets)
    });
    let scores = Scores::new(&scored);
    let stats = scored.into_iter().map(|(stats, _)| stats).collect();
    Some((scores, Pending { batch, rows, targets, stats, stream, hidden, rstd, recalled: Some(recalled) }))
}

/// Chosen rows of the residual stream, the same after the last norm, and its scales.
struct Ends {
    stream: Buffer,
    hidden: Buffer,
    rstd: Vec<f32>,
}

impl Ends {
    fn new<'a>(model: Model<'_>, rows: impl ExactSizeIterator<Item = &'a [f32]>) -> Self {
        let (count, width) = (rows.len(), model.spec.hidden);
        let (mut stream, mut hidden, mut rstd) = (Buffer::zeroed(count * width), Buffer::zeroed(count * width), vec![0.0; count]);
        stream.chunks_exact_mut(width).zip(rows).for_each(|(target, row)| target.copy_from_slice(row));
        norm::forward(model, Place::Final, &stream, &mut hidden, &mut rstd);
        Self { stream, hidden, rstd }
    }
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
    mut record: Option<&mut Record>,
    work: &[Extend<'_>],
    logits: &mut [f32],
) -> Result<(), EngineError> {
    let mut rest = &mut *logits;
    for pass in passes(kv, work) {
        let rows = pass.batch.rows();
        let mut recorded = record.as_deref_mut().map(|record| recorded(record, &pass)).unwrap_or_default();
        space.reserve_passing(model, rows, !recorded.is_empty());
        block::embed(model, &pass.batch, space.stream(model, rows));
        let mut pages: Vec<_> = pass.memories.iter().map(|id| kv.take(*id)).collect();
        for layer in 0..model.spec.layers {
            let keeping = if recorded.is_empty() { Keeping::Nothing } else { Keeping::ForNow };
            let (x, _, mut activations) = space.split(model, rows, keeping);
            block::forward(model, layer, &pass.batch, &mut Memory::Pages(&mut pages), x, &mut activations);
            if !recorded.is_empty() {
                record::keep(model.cpu, layer, &mut recorded, space.computed(model, rows));
            }
        }
        if !recorded.is_empty() {
            record::keep_stream(&mut recorded, space.stream(model, rows));
        }
        pass.memories.iter().zip(pages).for_each(|(id, pages)| kv.put_back(*id, pages));
        let width = model.spec.hidden;
        let Ends { hidden, .. } = Ends::new(model, pass.last.iter().map(|row| &space.x[row * width..][..width]));
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

/// The rows of a pass that are kept, by row; empty where none is.
fn recorded<'a>(record: &'a mut Record, pass: &Pass) -> Vec<Option<&'a mut [f32]>> {
    let Batch { tokens, runs, .. } = &pass.batch;
    let mut rows = Vec::with_capacity(tokens.len());
    for (kv, run) in pass.memories.iter().zip(runs) {
        match record.append(*kv, run.start, &tokens[run.row..][..run.rows]) {
            Some(own) => rows.extend(own.into_iter().map(Some)),
            None => rows.resize(rows.len() + run.rows, None),
        }
    }
    if rows.iter().all(Option::is_none) { Vec::new() } else { record.rows_mut(&rows) }
}

/// Whether no value is NaN or infinite.
pub(super) fn finite(values: &[f32]) -> bool {
    values.iter().fold(0, |most, value| (value.to_bits() & 0x7fff_ffff).max(most)) < 0x7f80_0000
}
