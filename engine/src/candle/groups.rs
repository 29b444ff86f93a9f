//! Which rows attend together: sequences of a pass, put side by side with padding on the right.
//!
//! All other layers work on packed rows `[N, ..]` without padding. For attention a group of sequences is laid out as
//! `[B, T]` queries against `[B, L]` keys; a causal mask over absolute positions also hides the padding, since it lies
//! behind every position that a real query may see.
use super::form::{Item, Pass};
use candle_core::{Device, Result, Tensor};

/// Largest `B * T * L` of a group: bounds the memory of its attention scores to 8 MiB a head.
const MAX_SCORES: usize = 1 << 21;

/// Sequences that attend in one product.
pub(super) struct Group {
    pub(super) batch: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    /// Packed row of each query; padding reads row 0. `[B * T]`
    pub(super) query_rows: Tensor,
    /// Row of each key and value in their source; padding reads row 0. `[B * L]`
    pub(super) key_rows: Tensor,
    /// 0 where a query sees a key, -inf where not. `[B, 1, T, L]`
    pub(super) mask: Tensor,
}

/// A whole pass.
pub(super) struct Groups {
    pub(super) groups: Vec<Group>,
    /// Where each packed row lies in the groups' rows one after the other. `[N]`
    pub(super) back: Tensor,
}

impl Groups {
    pub(super) fn of(pass: &Pass, device: &Device) -> Result<Self> {
        let items = &pass.items;
        let mut groups = Vec::new();
        let mut back = Vec::new();
        let (mut first, mut packed, mut padded) = (0, 0u32, 0u32);
        while first < items.len() {
            let last = first + together(&items[first..]);
            let members = &items[first..last];
            let queries = members.iter().map(|item| item.new).max().unwrap_or(0);
            let keys = members.iter().map(|item| item.past + item.new).max().unwrap_or(0);
            let (mut query_rows, mut key_rows, mut mask) = (Vec::new(), Vec::new(), Vec::new());
            for (i, item) in members.iter().enumerate() {
                let row = |i: usize, len: usize, base: u32| if i < len { base + i as u32 } else { 0 };
                query_rows.extend((0..queries).map(|i| row(i, item.new, packed)));
                key_rows.extend((0..keys).map(|p| if p < item.past + item.new { pass.row(first + i, p) } else { 0 }));
                for query in 0..queries {
                    let seen = item.past + query;
                    mask.extend((0..keys).map(|key| if key <= seen { 0.0 } else { f32::NEG_INFINITY }));
                }
                back.extend(padded..padded + item.new as u32);
                packed += item.new as u32;
                padded += queries as u32;
            }
            groups.push(Group {
                batch: members.len(),
                queries,
                keys,
                query_rows: Tensor::new(query_rows, device)?,
                key_rows: Tensor::new(key_rows, device)?,
                mask: Tensor::from_vec(mask, (members.len(), 1, queries, keys), device)?,
            });
            first = last;
        }
        Ok(Self { groups, back: Tensor::new(back, device)? })
    }
}

/// How many of the first items attend together: at least one.
fn together(items: &[Item]) -> usize {
    let (mut queries, mut keys) = (0, 0);
    let fits = items.iter().enumerate().take_while(|(i, item)| {
        queries = queries.max(item.new);
        keys = keys.max(item.past + item.new);
        (i + 1) * queries * keys <= MAX_SCORES
    });
    fits.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_out_and_come_back() {
        let items = [Item { past: 0, new: 3 }, Item { past: 2, new: 1 }];
        let pass = Pass::cached(items.to_vec(), vec![vec![10, 12], vec![22, 20]], 2);
        let g = Groups::of(&pass, &Device::Cpu).unwrap();
        assert_eq!(g.groups.len(), 1);
        let group = &g.groups[0];
        assert_eq!((group.batch, group.queries, group.keys), (2, 3, 3));
        assert_eq!(group.query_rows.to_vec1::<u32>().unwrap(), [0, 1, 2, 3, 0, 0]);
        assert_eq!(group.key_rows.to_vec1::<u32>().unwrap(), [10, 11, 12, 22, 23, 20]);
        assert_eq!(g.back.to_vec1::<u32>().unwrap(), [0, 1, 2, 3]);
        assert_eq!(pass.positions(), [0, 1, 2, 2]);
        assert_eq!(pass.written(), [10, 11, 12, 20]);
        let seen = |row: usize| group.mask.flatten_all().unwrap().to_vec1::<f32>().unwrap()[row * 3..][..3].to_vec();
        assert_eq!(seen(0), [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        assert_eq!(seen(3), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_group_stays_within_its_scores() {
        let g = Groups::of(&Pass::packed([512; 20], true), &Device::Cpu).unwrap();
        assert!(g.groups.len() > 1);
        assert!(g.groups.iter().all(|g| g.batch * g.queries * g.keys <= MAX_SCORES));
        assert_eq!(g.groups.iter().map(|g| g.batch).sum::<usize>(), 20);
        assert_eq!(together(&[Item { past: 100_000, new: 100 }]), 1);
    }
}
