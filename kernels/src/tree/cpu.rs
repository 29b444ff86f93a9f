//! On slices.

/// Sums `parts` in the tree; the sum is in the first of them. Each `[N]`.
pub fn sum(parts: &mut [&mut [f32]]) {
    let mut width = 1;
    while width < parts.len() {
        for left in (0..parts.len() - width).step_by(2 * width) {
            let (head, tail) = parts.split_at_mut(left + width);
            add(head[left], tail[0]);
        }
        width *= 2;
    }
}

/// `sum += term`. Both `[N]`.
pub fn add(sum: &mut [f32], term: &[f32]) {
    sum.iter_mut().zip(term).for_each(|(sum, term)| *sum += term);
}
