//! The seam between the network and the two forms of its parts: candle's primitives, and our kernels as custom operations.
//!
//! [`Primitives`](super::primitives::Primitives) are the parity reference and what the CPU runs; [`Fused`](super::fused::Fused)
//! is what CUDA runs, and the CPU in tests, where each operation is computed by its twin of the native engine.
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// One form.
pub(super) trait Form: Send {
    /// In the engine's numerics: equal names, equal order of every sum on one device.
    fn name(&self) -> &'static str;
    /// Operations on the rows of one pass.
    fn pass<'a>(&'a self, pass: &Arc<Pass>) -> Result<Box<dyn Operations + 'a>>;
    /// Log-prob of each row's token and entropy of each row, of softmax(logits / temperature).
    /// `[m, V], [m], [m] -> [m], [m]`
    fn score(&self, logits: &Tensor, tokens: &[u32], temperatures: &[f32]) -> Result<(Tensor, Tensor)>;
}

/// The parts of a block that exist in both forms. All of them have gradients.
pub(super) trait Operations {
    /// `x / sqrt(mean(x^2) + eps) * weight` by row. `[N, n], [n] -> [N, n]`
    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor>;

    /// `x + delta`, and its norm.
    fn add_norm(&self, x: &Tensor, delta: &Tensor, weight: &Tensor) -> Result<(Tensor, Tensor)> {
        let sum = (x + delta)?;
        let norm = self.norm(&sum, weight)?;
        Ok((sum, norm))
    }

    /// Rotary embedding by the pass's positions: the halves of every head are turned against each other.
    /// `[N, heads * d] -> [N, heads * d]`
    fn rotate(&self, x: &Tensor) -> Result<Tensor>;
    /// `silu(gate) * up`.
    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor>;
    /// Writes the pass's keys, turned where `turned` says so, and values to their rows of a store. `[2, stored, width]`
    fn append(&self, store: &Tensor, key: &Tensor, value: &Tensor, turned: bool) -> Result<()>;
    /// Causal attention of the pass's queries on the rows that its tables name.
    /// `[N, heads * d], [stored, kv_heads * d] twice -> [N, heads * d]`
    fn attend(&self, query: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor>;
}

/// One sequence of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    /// Tokens whose keys and values are there already.
    pub(super) past: usize,
    /// Tokens of this pass.
    pub(super) new: usize,
}

/// Which rows a pass computes, and where their keys and values lie.
pub(super) struct Pass {
    pub(super) items: Vec<Item>,
    /// First row of each page of each sequence.
    pub(super) tables: Vec<Vec<u32>>,
    /// Rows of a page.
    pub(super) page: usize,
    /// Keys and values are rows of this pass.
    pub(super) packed: bool,
    /// A way back will follow.
    pub(super) track: bool,
}

impl Pass {
    /// Keys and values are the packed rows of this pass.
    pub(super) fn packed(lengths: impl IntoIterator<Item = usize>, track: bool) -> Self {
        let items: Vec<_> = lengths.into_iter().map(|new| Item { past: 0, new }).collect();
        let mut start = 0;
        let tables = items
            .iter()
            .map(|item| {
                start += item.new as u32;
                vec![start - item.new as u32]
            })
            .collect();
        let page = items.iter().map(|item| item.new).max().unwrap_or(1).max(1);
        Self { items, tables, page, packed: true, track }
    }

    /// Keys and values lie in a store, each sequence's in pages of `page` rows.
    pub(super) fn cached(items: Vec<Item>, tables: Vec<Vec<u32>>, page: usize) -> Self {
        Self { items, tables, page, packed: false, track: false }
    }

    /// Absolute position of each row. `[N]`
    pub(super) fn positions(&self) -> Vec<u32> {
        self.items.iter().flat_map(|item| item.past as u32..(item.past + item.new) as u32).collect()
    }

    /// Row of a sequence's position among keys and values.
    pub(super) fn row(&self, sequence: usize, position: usize) -> u32 {
        self.tables[sequence][position / self.page] + (position % self.page) as u32
    }

    /// Where the pass's own keys and values go. `[N]`
    pub(super) fn written(&self) -> Vec<u32> {
        let rows = |(i, item): (usize, &Item)| (item.past..item.past + item.new).map(move |p| self.row(i, p)).collect::<Vec<_>>();
        self.items.iter().enumerate().flat_map(rows).collect()
    }
}
