//! Key/value memory: per layer one store of rows, which sequences own in pages.
use super::decoder::KeyValue;
use crate::{EngineError, KvId};
use candle_core::{DType, Device, Result, Tensor};
use cohort_model::DecoderSpec;
use std::collections::BTreeMap;

/// Rows of a page.
const PAGE: usize = 16;
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
    /// Keys and values of each layer. `[pages * PAGE, width]`
    stores: Vec<(Tensor, Tensor)>,
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
        let from = Tensor::new(&self.rows(from)[..len], &self.device)?;
        let mut writer = self.writer(&self.rows(to)[..len])?;
        for (layer, (keys, values)) in self.stores.iter().enumerate() {
            writer.put(layer, keys.index_select(&from, 0)?, values.index_select(&from, 0)?)?;
        }
        Ok(())
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

    /// Rows of a sequence's positions, as many as its pages hold.
    pub(super) fn rows(&self, id: KvId) -> Vec<u32> {
        let pages = self.sequences.get(&id).map_or(&[][..], |s| &s.pages);
        pages.iter().flat_map(|page| (0..PAGE as u32).map(move |i| page * PAGE as u32 + i)).collect()
    }

    /// Counts tokens whose keys and values are written now.
    pub(super) fn advance(&mut self, growth: &[(KvId, usize)]) {
        for (id, more) in growth {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.len += more;
            }
        }
    }

    /// Writes a pass's keys and values into `rows`, and reads from the stores.
    pub(super) fn writer(&self, rows: &[u32]) -> Result<Writer<'_>> {
        let rows = Tensor::new(rows, &self.device)?.unsqueeze(1)?; // [N, 1]
        let rows = rows.broadcast_as((rows.dim(0)?, self.width))?.contiguous()?; // [N, 1] -> [N, width]
        Ok(Writer { stores: &self.stores, rows })
    }

    fn grow(&mut self, short: usize) -> Result<()> {
        let pages = (self.pages * 2).max(FIRST_PAGES).min(self.most_pages).max(self.pages + short);
        let fresh = || Tensor::zeros((pages * PAGE, self.width), DType::F32, &self.device);
        let mut stores = Vec::with_capacity(self.layers);
        for layer in 0..self.layers {
            let (keys, values) = (fresh()?, fresh()?);
            if let Some((old_keys, old_values)) = self.stores.get(layer) {
                keys.slice_set(old_keys, 0, 0)?;
                values.slice_set(old_values, 0, 0)?;
            }
            stores.push((keys, values));
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
    stores: &'a [(Tensor, Tensor)],
    rows: Tensor,
}

impl KeyValue for Writer<'_> {
    fn put(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        let Some((all_keys, all_values)) = self.stores.get(layer) else {
            candle_core::bail!("no key/value store for layer {layer}")
        };
        all_keys.scatter_set(&self.rows, &keys.contiguous()?, 0)?;
        all_values.scatter_set(&self.rows, &values.contiguous()?, 0)?;
        Ok((all_keys.clone(), all_values.clone()))
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
        assert_eq!((kv.len(a), kv.rows(a).len(), kv.rows(b).len()), (17, 32, 0));
        kv.reserve(&[(b, 16)]).unwrap();
        kv.advance(&[(b, 16)]);
        let mut rows = [kv.rows(a), kv.rows(b)].concat();
        rows.sort_unstable();
        assert_eq!(rows, (0..48).collect::<Vec<u32>>());
        kv.truncate(a, 3);
        assert_eq!((kv.len(a), kv.rows(a).len()), (3, 16));
        kv.close(b);
        kv.reserve(&[(a, 45)]).unwrap();
    }
}
