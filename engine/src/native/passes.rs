//! Passes of the engine: sampling, forward with or without training, and the way back.
use super::NativeEngine;
use super::backward::{self, Gradients};
use super::block::Model;
use super::forward::{self, PASS_ROWS};
use super::record::Record;
use crate::{EngineError, Extend, Forward, PackedBatch, PackedSequence, Upstream, input};
use cohort_model::family::Positions;

/// The parts of the engine that a pass reads; a macro since the other fields stay free to change meanwhile.
macro_rules! model {
    ($engine:expr, $quantized:expr) => {
        Model {
            cpu: &$engine.cpu,
            spec: &$engine.spec,
            layout: &$engine.layout,
            weights: &$engine.weights,
            quantized: $quantized,
            rope: &$engine.rope,
            adapters: $engine.adapters.as_ref(),
        }
    };
}

impl NativeEngine {
    /// As [`Backend::extend`](crate::Backend::extend).
    pub(super) fn sampling_pass(&mut self, work: &[Extend<'_>], logits: &mut [f32]) -> Result<(), EngineError> {
        input::extend(&self.spec, work, logits.len(), |kv| self.kv.contains(kv).then(|| self.kv.len(kv)))?;
        let growth: Vec<_> = work.iter().map(|item| (item.kv, item.tokens.len())).collect();
        self.kv.reserve(&growth)?;
        let longest = growth.iter().map(|(kv, tokens)| self.kv.len(*kv) + tokens).max();
        self.reserve_positions(longest.unwrap_or(0));
        if self.record.as_ref().is_some_and(Record::is_empty) {
            // The next training pass will not need it, or takes it anew.
            self.kept.release();
        }
        let model = model!(self, self.weights.for_sampling());
        let done = forward::extend(model, &mut self.workspace, &mut self.kv, self.record.as_mut(), work, logits);
        if let (Err(_), Some(record)) = (&done, &mut self.record) {
            work.iter().for_each(|item| record.truncate(item.kv, self.kv.len(item.kv)));
        }
        done
    }

    /// As [`Backend::forward`](crate::Backend::forward).
    pub(super) fn forward_pass(&mut self, batch: &PackedBatch, train: bool) -> Result<Forward, EngineError> {
        input::batch(&self.spec, batch)?;
        if train && !self.keys.is_empty() && self.keys.len() != batch.sequences.len() {
            let (keys, sequences) = (std::mem::take(&mut self.keys).len(), batch.sequences.len());
            return Err(EngineError::Input(format!("{keys} keys of draws for {sequences} sequences")));
        }
        if train {
            self.weights.arena()?;
        }
        self.reserve_positions(batch.sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0));
        if train && let Some(forward) = self.recall(batch) {
            return Ok(forward);
        }
        let mut result = Forward::default();
        let mut rest = &batch.sequences[..];
        while !rest.is_empty() {
            let count = if train { rest.len() } else { together(rest) };
            let (now, later) = rest.split_at(count);
            rest = later;
            let kept = train.then_some(&mut self.kept);
            let keys = if train { &self.keys[..] } else { &[] };
            let (scores, pending) =
                forward::score(model!(self, self.weights.for_scoring()), &mut self.workspace, now, kept, keys);
            result.logp.extend(scores.logp);
            result.entropy.extend(scores.entropy);
            self.pending = if train { Some(pending) } else { self.pending.take() };
        }
        if train {
            self.keys.clear();
        }
        if let Some(at) = result.logp.iter().position(|logp| !logp.is_finite()) {
            self.pending = None;
            return Err(EngineError::NonFinite(format!(
                "log-prob of target {at} of {} is {}; the weights are broken or the target has no probability",
                result.logp.len(),
                result.logp[at]
            )));
        }
        Ok(result)
    }

    /// A training pass from what sampling kept, where it kept all of it and the pass draws nothing.
    fn recall(&mut self, batch: &PackedBatch) -> Option<Forward> {
        let record = self.record.as_ref().filter(|record| self.keys.is_empty() && !record.is_empty())?;
        let (scores, pending) = forward::recall(model!(self, None), &mut self.workspace, record, &batch.sequences)?;
        let recalled = pending.batch.rows();
        self.pending = Some(pending);
        Some(Forward { logp: scores.logp, entropy: scores.entropy, recalled })
    }

    /// A backward pass that tells of each stage when it is done with it.
    pub(super) fn backward_pass(&mut self, upstream: Upstream<'_>, done: &mut backward::Done<'_>) -> Result<(), EngineError> {
        let Some(pending) = &mut self.pending else {
            return Err(EngineError::Input("backward without a forward in training before it, under the same weights".into()));
        };
        let (got, want) = (upstream.d_logp.len(), pending.targets.len());
        if got != want || upstream.d_entropy.is_some_and(|d| d.len() != want) {
            return Err(EngineError::Input(format!("gradients of {got} log-probs where the forward had {want} targets")));
        }
        if !forward::finite(upstream.d_logp) || !upstream.d_entropy.is_none_or(forward::finite) {
            return Err(EngineError::NonFinite("a gradient of the loss by a log-prob or an entropy is not finite".into()));
        }
        let layout = self.adapters.as_ref().map_or(&self.layout, |adapters| &adapters.layout);
        let gradients = Gradients { arena: self.training.gradients_mut(layout), adapters: self.adapters.as_ref() };
        let (model, work, space) = (model!(self, None), &mut self.workspace, &mut self.backward);
        let kept = match &pending.recalled {
            Some(rows) => {
                self.recalled.reserve(model, 1, rows.len(), true);
                work.reserve(model, rows.len());
                &mut self.recalled
            }
            None => &mut self.kept,
        };
        // Who breaks off knows that it did.
        let _ = backward::backward(model, pending, (kept, self.record.as_ref()), work, space, (upstream, done), gradients);
        self.pending = None;
        Ok(())
    }

    /// The weights change: nothing that was computed with them counts any more.
    pub(super) fn forget_passes(&mut self) {
        self.pending = None;
        if let Some(record) = &mut self.record {
            record.clear();
        }
    }

    /// Makes the rotary table long enough, where there is one.
    fn reserve_positions(&mut self, longest: usize) {
        if self.spec.family.traits().positions == Positions::Rotary {
            self.rope.reserve(longest);
        }
    }
}

/// How many of the sequences go through the network together when nothing is kept: at least one.
fn together(sequences: &[PackedSequence]) -> usize {
    let mut rows = 0;
    let fits = sequences.iter().take_while(|sequence| {
        rows += sequence.tokens.len() - sequence.shared as usize;
        rows <= PASS_ROWS
    });
    fits.count().max(1)
}
