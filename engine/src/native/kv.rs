//! Key/value memory: sequences own pages of 64 positions for all layers, from a common budget.
//!
//! Invariant **V1**: a call takes every page it will need before it computes anything, or fails and takes none.
use crate::{EngineError, KvId};
use cohort_kernels::Buffer;
use cohort_kernels::attention::{Heads, PAGE};
use std::collections::BTreeMap;

/// A sequence's pages and how many positions of them hold tokens.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    pub(super) pages: Vec<Buffer>,
    pub(super) len: usize,
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

    pub(super) fn truncate(&mut self, id: KvId, len: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.len = sequence.len.min(len);
            let keep = Heads::pages(sequence.len).min(sequence.pages.len());
            self.free.extend(sequence.pages.drain(keep..));
        }
    }

    pub(super) fn close(&mut self, id: KvId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.free.extend(sequence.pages);
        }
    }

    /// Gives each sequence the pages for so many further tokens, or changes nothing.
    pub(super) fn reserve(&mut self, growth: &[(KvId, usize)]) -> Result<(), EngineError> {
        let missing = |store: &Self, (id, tokens): &(KvId, usize)| {
            store.sequences.get(id).map_or(0, |s| Heads::pages(s.len + tokens).saturating_sub(s.pages.len()))
        };
        let wanted: usize = growth.iter().map(|g| missing(self, g)).sum();
        let available = self.free.len() + self.most_pages.saturating_sub(self.pages);
        if wanted > available {
            return Err(EngineError::Capacity(format!(
                "{wanted} more key/value pages of {PAGE} positions are needed and {available} of {} are left; \
                 close sequences or raise the budget",
                self.most_pages
            )));
        }
        for g in growth {
            for _ in 0..missing(self, g) {
                let page = self.free.pop().unwrap_or_else(|| {
                    self.pages += 1;
                    Buffer::zeroed(self.page_len)
                });
                if let Some(sequence) = self.sequences.get_mut(&g.0) {
                    sequence.pages.push(page);
                }
            }
        }
        Ok(())
    }

    /// Takes a sequence's pages for a computation; [`KvStore::put_back`] returns them.
    pub(super) fn take(&mut self, id: KvId) -> Vec<Buffer> {
        self.sequences.get_mut(&id).map(|sequence| std::mem::take(&mut sequence.pages)).unwrap_or_default()
    }

    /// Returns pages.
    pub(super) fn put_back(&mut self, id: KvId, pages: Vec<Buffer>) {
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
