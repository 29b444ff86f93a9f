//! Which of many sequences begins most like a given one.
//!
//! Sequences stand in lexicographic order. The one with the longest beginning in common with a given sequence is then one of
//! its two neighbours: whatever lies between two sequences of the order begins with all that these have in common. So a
//! question takes O(log n) comparisons of sequences, and n questions O(n log n), where asking every pair takes n^2.
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};

/// Sequences of tokens and whose they are. Of equal ones the last added stands for all.
#[derive(Debug)]
pub(crate) struct Beginnings<'a, K, T = u32> {
    order: BTreeMap<&'a [T], K>,
}

impl<K, T: Ord> Default for Beginnings<'_, K, T> {
    fn default() -> Self {
        Self { order: BTreeMap::new() }
    }
}

impl<'a, K: Copy, T: Ord> Beginnings<'a, K, T> {
    /// Adds a sequence.
    pub(crate) fn add(&mut self, tokens: &'a [T], owner: K) {
        self.order.insert(tokens, owner);
    }

    /// The most tokens that any sequence has in common with the beginning of `own`, and one that has them.
    pub(crate) fn longest(&self, own: &[T]) -> Option<(usize, K)> {
        let before = self.order.range::<[T], _>((Unbounded, Included(own))).next_back();
        let after = self.order.range::<[T], _>((Excluded(own), Unbounded)).next();
        let common = |(tokens, owner): (&&[T], &K)| (tokens.iter().zip(own).take_while(|(a, b)| a == b).count(), *owner);
        before.into_iter().chain(after).map(common).max_by_key(|(len, _)| *len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::cmp::Ordering;

    proptest! {
        #[test]
        fn the_answer_is_that_of_asking_everyone(
            all in prop::collection::vec(prop::collection::vec(0u32..3, 0..7), 0..20),
            own in prop::collection::vec(0u32..3, 0..7),
        ) {
            let mut order = Beginnings::default();
            for (i, tokens) in all.iter().enumerate() {
                order.add(tokens, i);
            }
            let common = |tokens: &[u32]| tokens.iter().zip(&own).take_while(|(a, b)| a == b).count();
            let got = order.longest(&own);
            prop_assert_eq!(got.map(|(len, _)| len), all.iter().map(|tokens| common(tokens)).max());
            if let Some((len, owner)) = got {
                prop_assert_eq!(common(&all[owner]), len);
            }
        }
    }

    thread_local! {
        static COMPARISONS: Cell<u64> = const { Cell::new(0) };
    }

    /// A token that counts how often it is looked at.
    #[derive(Debug, Clone, Copy)]
    struct Counted(u32);

    impl Ord for Counted {
        fn cmp(&self, other: &Self) -> Ordering {
            COMPARISONS.set(COMPARISONS.get() + 1);
            self.0.cmp(&other.0)
        }
    }
    impl PartialOrd for Counted {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }
    impl PartialEq for Counted {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other) == Ordering::Equal
        }
    }
    impl Eq for Counted {}

    /// Tokens compared when `n` sequences of `len` tokens, all but the last two in common, ask in turn.
    fn comparisons(n: u32, len: usize) -> u64 {
        let sequence = |i: u32| {
            let mut tokens = vec![Counted(7); len];
            (tokens[len - 2], tokens[len - 1]) = (Counted(i.wrapping_mul(0x9e37_79b9) >> 16), Counted(i));
            tokens
        };
        let all: Vec<_> = (0..n).map(sequence).collect();
        let mut order = Beginnings::default();
        COMPARISONS.set(0);
        for (i, tokens) in all.iter().enumerate() {
            assert_eq!(order.longest(tokens).map(|(len, _)| len >= 98), (i > 0).then_some(true));
            order.add(tokens, i);
        }
        COMPARISONS.get()
    }

    #[test]
    fn work_grows_with_the_number_of_sequences_not_with_its_square() {
        let (few, many) = (comparisons(64, 100), comparisons(512, 100));
        assert!(many < 13 * few, "8 times the sequences: {few} comparisons became {many}");
        // All pairs would be 512 * 511 / 2 * 98 = 12.8 million.
        assert!(many < 3_000_000, "{many}");
    }
}
