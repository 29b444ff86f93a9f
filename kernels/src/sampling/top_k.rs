//! Top-k (1805.04833, section 5.4): only tokens with one of the `k` largest logits.
//!
//! ```text
//! keep v  where  z(v) >= the k-th largest z
//! ```
//!
//! As transformers' `TopKLogitsWarper` and vLLM: all tokens equal to the k-th stay, so that no tie is broken.

/// Sets every other logit to -infinity. `k` 0, or the whole vocabulary, changes nothing. O(vocab)
pub fn top_k(logits: &mut [f32], k: usize) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let mut values = logits.to_vec();
    let (_, kth, _) = values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let kth = *kth;
    for z in logits {
        if *z < kth {
            *z = f32::NEG_INFINITY;
        }
    }
}
