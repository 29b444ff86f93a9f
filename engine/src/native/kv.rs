//! Key/value memory: sequences own pages of 64 positions for all layers, from a common budget.
//!
//! Invariants
//! - **V1** a call takes every page it will need before it computes anything, or fails and takes none.
//! - **V2** sequences that were forked share the pages of what they have in common; a page is copied before one of them
//!   writes to it, so that nobody sees another's tokens.
use crate::{EngineError, KvId};
use cohort_kernels::Buffer;
use cohort_kernels::attention::{Heads, PAGE};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A sequence's pages and how many positions of them hold tokens.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    pub(super) pages: Vec<Arc<Buffer>>,
    pub(super) len: usize,
}

impl Sequence {
    /// Shared pages that the next token is written to: the one that is partly filled, or none.
    fn copies(&self) -> usize {
        let next = self.pages.get(self.len / PAGE);
        usize::from(next.is_some_and(|page| Arc::strong_count(page) > 1))
    }

    /// Pages to take for so many further tokens.
    fn missing(&self, tokens: usize) -> usize {
        self.copies() + Heads::pages(self.len + tokens).saturating_sub(self.pages.len())
    }
}

/// All sequences of an engine.
#[derive(Debug)]
pub(super) struct KvStore {
    sequences: BTreeMap<KvId, Sequence>,
    next: u32,
    free: Vec<Buffer>,
    /// Pages that exist, in use or free.
    pages: usize,
    most_pages: usize,
    page_len: usize,
}

impl KvStore {
    pub(super) fn new(heads: Heads, layers: usize, budget_bytes: usize) -> Self {
        let page_len = layers * heads.page_len();
        let most_pages = budget_bytes / (page_len * size_of::<f32>()).max(1);
        Self { sequences: BTreeMap::new(), next: 0, free: Vec::new(), pages: 0, most_pages, page_len }
    }

    pub(super) fn open(&mut self) -> Result<KvId, EngineError> {
        if self.sequences.len() >= self.most_pages {
            return Err(EngineError::Capacity(format!(
                "{} sequences are open and the key/value budget holds {} pages of {PAGE} positions; close one or raise the budget",
                self.sequences.len(),
                self.most_pages
            )));
        }
        let id = KvId(self.next);
        self.next = self.next.wrapping_add(1);
        self.sequences.insert(id, Sequence::default());
        Ok(id)
    }

    pub(super) fn len(&self, id: KvId) -> usize {
        self.sequences.get(&id).map_or(0, |sequence| sequence.len)
    }

    pub(super) fn contains(&self, id: KvId) -> bool {
        self.sequences.contains_key(&id)
    }

    /// A sequence that begins with the first `len` tokens of another.
    pub(super) fn fork(&mut self, from: KvId, len: usize) -> Result<KvId, EngineError> {
        let held = self.len(from);
        if len > held {
            let KvId(from) = from;
            return Err(EngineError::Input(format!("{len} tokens of key/value memory {from} are wanted, it holds {held}")));
        }
        let id = self.open()?;
        let pages: Vec<_> =
            self.sequences.get(&from).map(|s| s.pages.iter().take(Heads::pages(len)).cloned().collect()).unwrap_or_default();
        if let Some(sequence) = self.sequences.get_mut(&id) {
            (sequence.pages, sequence.len) = (pages, len);
        }
        Ok(id)
    }

    pub(super) fn truncate(&mut self, id: KvId, len: usize) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.len = sequence.len.min(len);
        let keep = Heads::pages(sequence.len).min(sequence.pages.len());
        let pages: Vec<_> = sequence.pages.drain(keep..).collect();
        self.release(pages);
    }

    pub(super) fn close(&mut self, id: KvId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.release(sequence.pages);
        }
    }

    /// Pages that nobody else holds are free again.
    fn release(&mut self, pages: Vec<Arc<Buffer>>) {
        self.free.extend(pages.into_iter().filter_map(Arc::into_inner));
    }

    /// Gives each sequence the pages for so many further tokens as its own, or changes nothing.
    pub(super) fn reserve(&mut self, growth: &[(KvId, usize)]) -> Result<(), EngineError> {
        let wanted: usize = growth.iter().map(|(id, tokens)| self.sequences.get(id).map_or(0, |s| s.missing(*tokens))).sum();
        let available = self.free.len() + self.most_pages.saturating_sub(self.pages);
        if wanted > available {
            return Err(EngineError::Capacity(format!(
                "{wanted} more key/value pages of {PAGE} positions are needed and {available} of {} are left; \
                 close sequences or raise the budget",
                self.most_pages
            )));
        }
        for (id, tokens) in growth {
            let Some(sequence) = self.sequences.get_mut(id) else { continue };
            let mut page = || {
                self.free.pop().unwrap_or_else(|| {
                    self.pages += 1;
                    Buffer::zeroed(self.page_len)
                })
            };
            let copied = sequence.copies();
            for shared in sequence.pages.iter_mut().skip(sequence.len / PAGE).take(copied) {
                let mut own = page();
                own.copy_from_slice(shared);
                *shared = Arc::new(own);
            }
            for _ in 0..sequence.missing(*tokens) {
                sequence.pages.push(Arc::new(page()));
            }
        }
        Ok(())
    }

    /// Takes a sequence's pages for a computation; [`KvStore::put_back`] returns them.
    pub(super) fn take(&mut self, id: KvId) -> Vec<Arc<Buffer>> {
        self.sequences.get_mut(&id).map(|sequence| std::mem::take(&mut sequence.pages)).unwrap_or_default()
    }

    /// Returns pages.
    pub(super) fn put_back(&mut self, id: KvId, pages: Vec<Arc<Buffer>>) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.pages = pages;
        }
    }

    /// The tokens of a successful call count from now on.
    pub(super) fn commit(&mut self, id: KvId, tokens: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.len += tokens;
        }
    }
}
