//! Writing keys and values into pages.
use super::{Heads, PAGE};
use crate::Cpu;

/// New rows of one sequence.
pub struct Append<'a> {
    /// Keys, already turned by their position. `[rows, key_value * dim]`
    pub k: &'a [f32],
    /// Values. `[rows, key_value * dim]`
    pub v: &'a [f32],
    /// Position of the first row.
    pub start: usize,
    /// The sequence's pages of this layer, from the one that holds `start`; what they held from there on does not matter.
    pub pages: Vec<&'a mut [f32]>,
}

/// Writes the rows of each span to its pages.
///
/// # Panics
/// When a page is missing or a length does not fit.
pub fn append(cpu: &Cpu, heads: Heads, spans: &mut [Append<'_>]) {
    let rows: usize = spans.iter().map(|span| span.k.len()).sum();
    if rows < 1 << 14 {
        spans.iter_mut().for_each(|span| write(heads, span)); // too little to wake anybody
    } else {
        cpu.pool().each(spans, |_, span| write(heads, span));
    }
}

pub(super) fn write(heads: Heads, span: &mut Append<'_>) {
    let width = heads.key_value * heads.dim;
    assert_eq!(span.k.len(), span.v.len());
    for (row, (k, v)) in span.k.chunks_exact(width).zip(span.v.chunks_exact(width)).enumerate() {
        let (page, at) = ((span.start % PAGE + row) / PAGE, (span.start + row) % PAGE);
        let page = &mut span.pages[page][..heads.page_len()];
        let parts = page.chunks_exact_mut(heads.head_len()).zip(k.chunks_exact(heads.dim).zip(v.chunks_exact(heads.dim)));
        for (page, (k, v)) in parts {
            let (keys, values) = page.split_at_mut(PAGE * heads.dim);
            let block = &mut keys[at / 16 * 16 * heads.dim..][..16 * heads.dim];
            for (line, k) in block.chunks_exact_mut(16).zip(k) {
                line[at % 16] = *k;
            }
            values[at * heads.stride()..][..heads.dim].copy_from_slice(v);
        }
    }
}
