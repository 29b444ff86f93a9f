//! Counter-based choices outside the engine: every one is a pure function of its key.

/// A 64-bit value keyed by all words.
#[must_use]
pub fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0x636f_686f_7274_5f31, |state, &word| finish(state ^ finish(word.wrapping_add(0x9e37_79b9_7f4a_7c15))))
}

/// The bijective end of splitmix64.
const fn finish(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Where `index` goes in a keyed permutation of `0..n`, without storing it: a four-round Feistel network over the next
/// power of four, walked until it lands inside. `index` must be below `n`.
#[must_use]
pub fn permute(index: u64, n: u64, key: u64) -> u64 {
    let half = (64 - n.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = index;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (hash(&[key, round, right]) & mask));
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_permutation_visits_everything_once(n in 1u64..700, key: u64) {
            let mut seen: Vec<u64> = (0..n).map(|i| permute(i, n, key)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn keys_give_different_orders() {
        let order = |key| (0..100).map(|i| permute(i, 100, key)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
        assert_ne!(order(1), (0..100).collect::<Vec<_>>());
    }
}
