//! What sampling computed of each row, kept for the learner, who would compute the very same again.
//!
//! Invariants
//! - **R1** a kept row is what a training pass under the weights in use would keep of it, to the bit: the same function made it
//!   (N2), and nothing outlives a change of weights.
//! - **R2** rows never take more than the budget. Where it is used up, the sequence that ended first goes, then the one that
//!   asks.
//! - **R3** a sequence that is not kept, or not whole, costs time and nothing else: it is computed.
use super::workspace::KeptBlock;
use crate::{KvId, Scored};
use cohort_kernels::{Buffer, Cpu};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Bytes that are asked of the system at once, about.
const SLAB_BYTES: usize = 16 << 20;

/// Rows of sequences, each `[layers][block's parts], [hidden]`: what [`KeptBlock::parts`] has, then the residual stream behind
/// the last block.
pub(super) struct Record {
    /// Values of one block, of the stream, and of a whole row.
    block: usize,
    hidden: usize,
    row: usize,
    slab_rows: usize,
    most_slabs: usize,
    slabs: Vec<Buffer>,
    /// By row: sequences that hold it, and what was drawn after it.
    holders: Vec<u32>,
    drawn: Vec<Option<Scored>>,
    free: Vec<usize>,
    running: BTreeMap<KvId, Running>,
    /// By their tokens; several of equal tokens are one.
    ended: BTreeMap<Vec<u32>, Vec<usize>>,
    /// Tokens of those that ended, by when.
    order: BTreeMap<u64, Vec<u32>>,
    ends: u64,
}

/// A sequence whose memory is open: its tokens and the row of each.
#[derive(Default)]
struct Running {
    tokens: Vec<u32>,
    rows: Vec<usize>,
}

impl Record {
    /// Keeps at most `budget_bytes`; nothing where that is less than one row.
    pub(super) fn new(layers: usize, block: usize, hidden: usize, budget_bytes: usize) -> Self {
        let row = layers * block + hidden;
        let bytes = row * size_of::<f32>();
        let slab_rows = (SLAB_BYTES / bytes).clamp(1, (budget_bytes / bytes).max(1));
        Self {
            block,
            hidden,
            row,
            slab_rows,
            most_slabs: budget_bytes / (slab_rows * bytes),
            slabs: Vec::new(),
            holders: Vec::new(),
            drawn: Vec::new(),
            free: Vec::new(),
            running: BTreeMap::new(),
            ended: BTreeMap::new(),
            order: BTreeMap::new(),
            ends: 0,
        }
    }

    /// Forgets all: the weights have changed. The memory stays for what comes next.
    pub(super) fn clear(&mut self) {
        self.running.clear();
        self.ended.clear();
        self.order.clear();
        self.holders.fill(0);
        self.free = (0..self.holders.len()).rev().collect();
    }

    /// As [`Record::clear`], and gives the memory back.
    pub(super) fn release(&mut self) {
        self.clear();
        self.slabs.clear();
        self.holders.clear();
        self.drawn.clear();
        self.free.clear();
    }

    /// Whether it holds nothing that is worth looking for.
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.ended.is_empty()
    }

    /// Rows for tokens that a memory of `start` tokens takes in; `None` where its beginning is not kept or no room is left.
    pub(super) fn append(&mut self, kv: KvId, start: usize, tokens: &[u32]) -> Option<Vec<usize>> {
        let mut kept = self.running.remove(&kv).unwrap_or_default();
        // A call that failed has left rows behind.
        self.cut(&mut kept, start);
        if kept.rows.len() < start {
            self.let_go(&kept.rows);
            return None;
        }
        for token in tokens {
            let Some(row) = self.take_row() else {
                self.let_go(&kept.rows);
                return None;
            };
            kept.tokens.push(*token);
            kept.rows.push(row);
        }
        let rows = kept.rows[start..].to_vec();
        self.running.insert(kv, kept);
        Some(rows)
    }

    /// A memory that begins with the first `len` tokens of another.
    pub(super) fn fork(&mut self, from: KvId, to: KvId, len: usize) {
        let Some(kept) = self.running.get(&from).filter(|kept| kept.rows.len() >= len) else { return };
        let kept = Running { tokens: kept.tokens[..len].to_vec(), rows: kept.rows[..len].to_vec() };
        kept.rows.iter().for_each(|row| self.holders[*row] += 1);
        self.running.insert(to, kept);
    }

    /// A memory was cut to its first `len` tokens.
    pub(super) fn truncate(&mut self, kv: KvId, len: usize) {
        if let Some(mut kept) = self.running.remove(&kv) {
            self.cut(&mut kept, len);
            self.running.insert(kv, kept);
        }
    }

    /// A memory was closed; what is kept of it stays.
    pub(super) fn end(&mut self, kv: KvId) {
        let Some(Running { tokens, rows }) = self.running.remove(&kv) else { return };
        if tokens.is_empty() || self.ended.contains_key(&tokens) {
            return self.let_go(&rows);
        }
        self.ends += 1;
        self.order.insert(self.ends, tokens.clone());
        self.ended.insert(tokens, rows);
    }

    /// What was drawn after the last token of a memory.
    pub(super) fn note(&mut self, kv: KvId, scored: Scored) {
        if let Some(row) = self.running.get(&kv).and_then(|kept| kept.rows.last()) {
            self.drawn[*row] = Some(scored);
        }
    }

    /// The rows of a sequence that begins with these tokens.
    pub(super) fn find(&self, tokens: &[u32]) -> Option<&[usize]> {
        let from = (Bound::Included(tokens), Bound::Unbounded);
        let ended = self.ended.range::<[u32], _>(from).next();
        let running = self.running.values().map(|kept| (&kept.tokens, &kept.rows));
        let found = ended.into_iter().chain(running).find(|(all, _)| all.starts_with(tokens));
        found.map(|(_, rows)| &rows[..tokens.len()])
    }

    /// What was drawn after a row.
    pub(super) fn drawn(&self, row: usize) -> Option<Scored> {
        self.drawn[row]
    }

    /// The residual stream behind the last block. `[hidden]`
    pub(super) fn stream(&self, row: usize) -> &[f32] {
        let all = self.values(row);
        &all[all.len() - self.hidden..]
    }

    /// Rows to be written, in the order of `rows`, each of which is named once.
    pub(super) fn rows_mut(&mut self, rows: &[Option<usize>]) -> Vec<Option<&mut [f32]>> {
        let mut place: BTreeMap<usize, usize> = rows.iter().enumerate().filter_map(|(i, row)| Some(((*row)?, i))).collect();
        let mut found: Vec<Option<&mut [f32]>> = rows.iter().map(|_| None).collect();
        for (slab, first) in self.slabs.iter_mut().zip((0..).step_by(self.slab_rows)) {
            let later = place.split_off(&(first + self.slab_rows));
            let mut values = slab.chunks_exact_mut(self.row);
            let mut next = first;
            for (row, index) in std::mem::replace(&mut place, later) {
                found[index] = values.nth(row - next);
                next = row + 1;
            }
        }
        found
    }

    /// One block of these rows, as a training pass leaves it.
    pub(super) fn recall(&self, cpu: &Cpu, layer: usize, rows: &[usize], mut block: KeptBlock<'_>) {
        let mut at = layer * self.block;
        let mut parts = Vec::new();
        for part in block.parts() {
            let width = part.len() / rows.len();
            parts.push((at, width, part));
            at += width;
        }
        cpu.pool().each(&mut parts, |_, (at, width, part)| {
            for (values, row) in part.chunks_exact_mut((*width).max(1)).zip(rows) {
                values.copy_from_slice(&self.values(*row)[*at..*at + *width]);
            }
        });
    }

    fn values(&self, row: usize) -> &[f32] {
        &self.slabs[row / self.slab_rows][row % self.slab_rows * self.row..][..self.row]
    }

    fn cut(&mut self, kept: &mut Running, len: usize) {
        kept.tokens.truncate(len);
        let gone = kept.rows.split_off(len.min(kept.rows.len()));
        self.let_go(&gone);
    }

    fn let_go(&mut self, rows: &[usize]) {
        for row in rows {
            self.holders[*row] -= 1;
            if self.holders[*row] == 0 {
                self.free.push(*row);
            }
        }
    }

    /// A row that nobody holds, for one holder (R2).
    fn take_row(&mut self) -> Option<usize> {
        while self.free.is_empty() {
            if self.slabs.len() < self.most_slabs {
                let first = self.holders.len();
                self.slabs.push(Buffer::zeroed(self.slab_rows * self.row));
                self.holders.resize(first + self.slab_rows, 0);
                self.drawn.resize(first + self.slab_rows, None);
                self.free.extend((first..first + self.slab_rows).rev());
            } else {
                let (_, oldest) = self.order.pop_first()?;
                let rows = self.ended.remove(&oldest)?;
                self.let_go(&rows);
            }
        }
        let row = self.free.pop()?;
        (self.holders[row], self.drawn[row]) = (1, None);
        Some(row)
    }
}

/// Puts one block of a pass into those of its rows that are kept.
pub(super) fn keep(cpu: &Cpu, layer: usize, rows: &mut [Option<&mut [f32]>], mut block: KeptBlock<'_>) {
    let count = rows.len();
    let parts = block.parts().map(|part| (part.len() / count, &*part));
    let start = layer * parts.iter().map(|(width, _)| width).sum::<usize>();
    cpu.pool().each(rows, |index, row| {
        let Some(row) = row else { return };
        let mut rest = &mut row[start..];
        for (width, part) in &parts {
            let (values, others) = rest.split_at_mut(*width);
            values.copy_from_slice(&part[index * width..][..*width]);
            rest = others;
        }
    });
}

/// Puts the residual stream behind the last block there. `x [rows, hidden]`
pub(super) fn keep_stream(rows: &mut [Option<&mut [f32]>], x: &[f32]) {
    let hidden = x.len() / rows.len();
    for (row, x) in rows.iter_mut().zip(x.chunks_exact(hidden)) {
        if let Some(row) = row {
            let start = row.len() - hidden;
            row[start..].copy_from_slice(x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 3 values, 4 of them in all.
    fn record() -> Record {
        Record::new(1, 2, 1, 4 * 3 * size_of::<f32>())
    }

    #[test]
    fn a_sequence_is_found_by_its_beginning_while_it_runs_and_when_it_has_ended() {
        let mut record = record();
        let first = record.append(KvId(0), 0, &[7, 8]).unwrap();
        let second = record.append(KvId(0), 2, &[9]).unwrap();
        let all = [first, second].concat();
        assert_eq!(record.find(&[7, 8]), Some(&all[..2]));
        record.end(KvId(0));
        assert_eq!(record.find(&[7, 8, 9]), Some(&all[..]));
        assert_eq!((record.find(&[7, 9]), record.find(&[7, 8, 9, 1])), (None, None));
        record.clear();
        assert_eq!(record.find(&[7]), None);
    }

    #[test]
    fn forks_share_rows_until_both_are_gone() {
        let mut record = record();
        record.append(KvId(0), 0, &[1, 2]).unwrap();
        record.fork(KvId(0), KvId(1), 1);
        record.append(KvId(1), 1, &[3]).unwrap();
        record.truncate(KvId(0), 0);
        let shared = record.find(&[1, 3]).unwrap().to_vec();
        let more = record.append(KvId(0), 0, &[5, 6]).unwrap();
        assert!(more.iter().all(|row| !shared.contains(row)), "{more:?} {shared:?}");
        assert_eq!(record.append(KvId(2), 0, &[4]), None, "four rows are held");
    }

    #[test]
    fn the_budget_holds_the_latest() {
        let mut record = record();
        for (kv, tokens) in [(0, [1, 2]), (1, [3, 4]), (2, [5, 6])] {
            assert!(record.append(KvId(kv), 0, &tokens).is_some());
            record.end(KvId(kv));
        }
        assert_eq!(record.find(&[1, 2]), None);
        assert!(record.find(&[3, 4]).is_some() && record.find(&[5, 6]).is_some());
        assert_eq!(record.append(KvId(3), 0, &[9; 5]), None, "no room for it even alone");
        assert!(record.is_empty(), "who asks for all gets all, and leaves nothing behind");
        assert_eq!(record.free.len(), 4);
    }

    #[test]
    fn what_does_not_continue_is_not_kept() {
        let mut record = record();
        assert_eq!(record.append(KvId(0), 3, &[1]), None);
        record.append(KvId(0), 0, &[1, 2]).unwrap();
        assert_eq!(record.append(KvId(0), 1, &[5]).map(|rows| rows.len()), Some(1), "a failed call's rows are written again");
        assert!(record.find(&[1, 5]).is_some() && record.find(&[1, 2]).is_none());
        record.release();
        assert!(record.is_empty() && record.slabs.is_empty());
        assert_eq!(record.append(KvId(0), 2, &[1]), None, "its beginning was of other weights");
    }

    #[test]
    fn rows_are_written_in_any_order() {
        let mut record = record();
        let rows = record.append(KvId(0), 0, &[1, 2, 3]).unwrap();
        let order = [Some(rows[2]), None, Some(rows[0])];
        for (row, value) in record.rows_mut(&order).into_iter().zip([2.0, 9.0, 0.0]) {
            if let Some(row) = row {
                row.fill(value);
            }
        }
        let streams: Vec<f32> = rows.iter().map(|row| record.stream(*row)[0]).collect();
        assert_eq!(streams, [0.0, 0.0, 2.0]);
        assert_eq!(record.drawn(rows[1]), None);
        assert_eq!(record.rows_mut(&[]).len(), 0);
    }
}
