//! Sixteen lanes: the fixed shape of every reduction.
//!
//! A sum over `x[0..n]` puts element `i` into lane `i % 16`, adds within a lane in ascending order, then folds lanes
//! 8, 4, 2, 1 apart. The shape depends on nothing but `n`.

/// Sixteen values.
pub(crate) type Lanes = [f32; 16];

/// The same value in all lanes.
#[inline(always)]
pub(crate) const fn splat(value: f32) -> Lanes {
    [value; 16]
}

/// `f(i)` in lane `i`.
#[inline(always)]
pub(crate) fn each(f: impl Fn(usize) -> f32) -> Lanes {
    let mut out = [0.0; 16];
    for (i, lane) in out.iter_mut().enumerate() {
        *lane = f(i);
    }
    out
}

/// Number of blocks of 16 that hold `len` values.
#[inline(always)]
pub(crate) fn blocks(len: usize) -> usize {
    len.div_ceil(16)
}

/// Values `16 index ..` of `x`, with `fill` in the lanes past its end.
#[inline(always)]
pub(crate) fn block(x: &[f32], index: usize, fill: f32) -> Lanes {
    let rest = &x[16 * index..];
    let mut out = [fill; 16];
    match rest.first_chunk::<16>() {
        Some(full) => out = *full,
        None => out[..rest.len()].copy_from_slice(rest),
    }
    out
}

/// Sum of the products of two slices of one length, by lanes.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let y = &y[..x.len()];
    let ((xs, x_tail), (ys, y_tail)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    let mut sums = splat(0.0);
    for (a, b) in xs.iter().zip(ys) {
        sums = each(|i| a[i].mul_add(b[i], sums[i]));
    }
    for (i, (a, b)) in x_tail.iter().zip(y_tail).enumerate() {
        sums[i] = a.mul_add(*b, sums[i]);
    }
    sum(sums)
}

/// Folds the lanes into their sum.
#[inline(always)]
pub(crate) fn sum(mut v: Lanes) -> f32 {
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            v[i] += v[i + half];
        }
        half /= 2;
    }
    v[0]
}

/// Folds the lanes into their largest value (a NaN is passed over unless all are).
#[inline(always)]
pub(crate) fn max(mut v: Lanes) -> f32 {
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            v[i] = larger(v[i], v[i + half]);
        }
        half /= 2;
    }
    v[0]
}

/// The larger of two numbers; the first when they compare as neither.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::{block, blocks, each, max, splat, sum};

    #[test]
    fn folds_have_the_documented_shape() {
        let v = each(|i| i as f32);
        assert_eq!(sum(v), 120.0);
        assert_eq!(max(v), 15.0);
        // ((l0 + l8) + (l4 + l12)) + ...: 1e8 and -1e8 eight lanes apart cancel before anything else is added.
        let mut v = splat(1.0);
        (v[3], v[11]) = (1e8, -1e8);
        assert_eq!(sum(v), 14.0);
    }

    #[test]
    fn blocks_cover_a_slice_and_fill_its_end() {
        let x: Vec<f32> = (0..35).map(|i| i as f32).collect();
        let all: Vec<f32> = (0..blocks(35)).flat_map(|i| block(&x, i, -1.0)).collect();
        assert_eq!((&all[..35], &all[35..]), (&x[..], &[-1.0; 13][..]));
        assert_eq!(blocks(0), 0);
    }
}
