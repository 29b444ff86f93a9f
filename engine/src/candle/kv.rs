//! Key/value memory: per layer one store of rows, which sequences own in pages.
use super::decoder::KeyValue;
use super::form::Operations;
use crate::{EngineError, KvId};
use candle_core::{DType, Device, Result, Tensor};
use cohort_model::DecoderSpec;
use std::collections::BTreeMap;

/// Rows of a page.
pub(super) const PAGE: usize = 16;
/// Pages of a new store.
const FIRST_PAGES: usize = 64;

#[derive(Debug, Default)]
struct Sequence {
    pages: Vec<u32>,
    len: usize,
}

/// All sequences of an engine.
pub(super) struct KvStore {
    device: Device,
    layers: usize,
    /// Width of a row: all key/value heads of a position.
    width: usize,
    sequences: BTreeMap<KvId, Sequence>,
    next: u32,
    free: Vec<u32>,
    pages: usize,
    most_pages: usize,
    /// Keys, then values, of each layer. `[2, pages * PAGE, width]`
    stores: Vec<Tensor>,
}

impl KvStore {
    pub(super) fn new(spec: &DecoderSpec, device: &Device, budget_bytes: usize) -> Self {
        let width = spec.kv_heads * spec.head_dim;
        let page_bytes = PAGE * width * 2 * spec.layers * size_of::<f32>();
        Self {
            device: device.clone(),
            layers: spec.layers,
            width,
            sequences: BTreeMap::new(),
            next: 0,
            free: Vec::new(),
            pages: 0,
            most_pages: budget_bytes / page_bytes.max(1),
            stores: Vec::new(),
        }
    }

    pub(super) fn open(&mut self) -> std::result::Result<KvId, EngineError> {
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

    /// A sequence that begins with a copy of the first `len` tokens of another.
    pub(super) fn fork(&mut self, from: KvId, len: usize) -> std::result::Result<KvId, EngineError> {
        let held = self.len(from);
        if len > held {
            let KvId(from) = from;
            return Err(EngineError::Input(format!("{len} tokens of key/value memory {from} are wanted, it holds {held}")));
        }
        let id = self.open()?;
        let filled = self.reserve(&[(id, len)]).and_then(|()| self.copy(from, id, len).map_err(super::failed));
        filled.inspect_err(|_| self.close(id))?;
        self.advance(&[(id, len)]);
        Ok(id)
    }

    fn copy(&self, from: KvId, to: KvId, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let rows = |id| Tensor::new(&self.rows(id)[..len], &self.device);
        let to = rows(to)?.reshape((1, len, 1))?.broadcast_as((2, len, self.width))?.contiguous()?;
        let from = rows(from)?;
        self.stores.iter().try_for_each(|store| store.scatter_set(&to, &store.index_select(&from, 1)?, 1))
    }

    pub(super) fn contains(&self, id: KvId) -> bool {
        self.sequences.contains_key(&id)
    }

    pub(super) fn len(&self, id: KvId) -> usize {
        self.sequences.get(&id).map_or(0, |s| s.len)
    }

    pub(super) fn truncate(&mut self, id: KvId, len: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.len = sequence.len.min(len);
            let keep = sequence.len.div_ceil(PAGE).min(sequence.pages.len());
            self.free.extend(sequence.pages.drain(keep..));
        }
    }

    pub(super) fn close(&mut self, id: KvId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.free.extend(sequence.pages);
        }
    }

    /// Takes the pages that the sequences need to grow, all or none.
    pub(super) fn reserve(&mut self, growth: &[(KvId, usize)]) -> std::result::Result<(), EngineError> {
        let missing = |s: &Sequence, more: usize| (s.len + more).div_ceil(PAGE).saturating_sub(s.pages.len());
        let needed: usize = growth.iter().filter_map(|(id, more)| Some(missing(self.sequences.get(id)?, *more))).sum();
        let short = needed.saturating_sub(self.free.len());
        if short > self.most_pages - self.pages {
            return Err(EngineError::Capacity(format!(
                "{needed} pages of {PAGE} positions are needed, {} are free of {}; close a sequence or raise the key/value budget",
                self.free.len() + self.most_pages - self.pages,
                self.most_pages
            )));
        }
        if short > 0 {
            self.grow(short).map_err(super::failed)?;
        }
        for (id, more) in growth {
            if let Some(sequence) = self.sequences.get_mut(id) {
                let at = self.free.len() - missing(sequence, *more);
                sequence.pages.extend(self.free.drain(at..).rev());
            }
        }
        Ok(())
    }

    /// First row of each of a sequence's pages.
    pub(super) fn pages(&self, id: KvId) -> Vec<u32> {
        let pages = self.sequences.get(&id).map_or(&[][..], |s| &s.pages);
        pages.iter().map(|page| page * PAGE as u32).collect()
    }

    /// Rows of a sequence's positions, as many as its pages hold.
    fn rows(&self, id: KvId) -> Vec<u32> {
        self.pages(id).into_iter().flat_map(|first| first..first + PAGE as u32).collect()
    }

    /// Counts tokens whose keys and values are written now.
    pub(super) fn advance(&mut self, growth: &[(KvId, usize)]) {
        for (id, more) in growth {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.len += more;
            }
        }
    }

    /// Takes a pass's keys and values.
    pub(super) fn writer(&self) -> Writer<'_> {
        Writer { stores: &self.stores }
    }

    fn grow(&mut self, short: usize) -> Result<()> {
        let pages = (self.pages * 2).max(FIRST_PAGES).min(self.most_pages).max(self.pages + short);
        let mut stores = Vec::with_capacity(self.layers);
        for layer in 0..self.layers {
            let store = Tensor::zeros((2, pages * PAGE, self.width), DType::F32, &self.device)?;
            if let Some(old) = self.stores.get(layer) {
                store.slice_set(old, 1, 0)?;
            }
            stores.push(store);
        }
        self.stores = stores;
        // Lowest first when taken from the end.
        self.free.splice(0..0, (self.pages as u32..pages as u32).rev());
        self.pages = pages;
        Ok(())
    }
}

/// Puts keys and values of one pass into the store.
pub(super) struct Writer<'a> {
    stores: &'a [Tensor],
}

impl KeyValue for Writer<'_> {
    fn put(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        turned: bool,
        on: &dyn Operations,
    ) -> Result<(Tensor, Tensor)> {
        let Some(store) = self.stores.get(layer) else { candle_core::bail!("no key/value store for layer {layer}") };
        on.append(store, keys, values, turned)?;
        Ok((store.get(0)?, store.get(1)?)) // [2, stored, width] -> [stored, width] twice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(budget_pages: usize) -> KvStore {
        let spec = DecoderSpec {
            family: cohort_model::Family::Llama,
            hidden: 4,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 4,
            intermediate: 4,
            vocab: 4,
            max_context: 10_000,
            norm_eps: 1e-5,
            rope_theta: 1e4,
            tied_embeddings: true,
        };
        KvStore::new(&spec, &Device::Cpu, budget_pages * PAGE * 4 * 2 * 4)
    }

    #[test]
    fn pages_are_taken_all_or_none_and_come_back() {
        let mut kv = store(3);
        let (a, b) = (kv.open().unwrap(), kv.open().unwrap());
        kv.reserve(&[(a, 17)]).unwrap();
        kv.advance(&[(a, 17)]);
        assert!(matches!(kv.reserve(&[(a, 1), (b, 17)]), Err(EngineError::Capacity(_))));
        assert_eq!((kv.len(a), kv.pages(a).len(), kv.pages(b).len()), (17, 2, 0));
        kv.reserve(&[(b, 16)]).unwrap();
        kv.advance(&[(b, 16)]);
        let mut pages = [kv.pages(a), kv.pages(b)].concat();
        pages.sort_unstable();
        assert_eq!(pages, [0, 16, 32]);
        kv.truncate(a, 3);
        assert_eq!((kv.len(a), kv.pages(a).len()), (3, 1));
        kv.close(b);
        kv.reserve(&[(a, 45)]).unwrap();
    }
}
