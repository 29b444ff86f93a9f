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

/// The lanes of a slice of 16.
#[inline(always)]
pub(crate) fn load(from: &[f32]) -> Lanes {
    let mut out = [0.0; 16];
    out.copy_from_slice(&from[..16]);
    out
}

/// Up to 16 values; `fill` in the lanes behind them.
#[inline(always)]
pub(crate) fn load_tail(from: &[f32], fill: f32) -> Lanes {
    let mut out = [fill; 16];
    out[..from.len()].copy_from_slice(from);
    out
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

/// Calls `full(index, lanes)` for each 16 values of `x` and once for what is left, with zeros behind.
#[inline(always)]
pub(crate) fn for_each(x: &[f32], mut f: impl FnMut(Lanes)) {
    let chunks = x.chunks_exact(16);
    let tail = chunks.remainder();
    for chunk in chunks {
        f(load(chunk));
    }
    if !tail.is_empty() {
        f(load_tail(tail, 0.0));
    }
}

/// As [`for_each`] over two slices of one length.
#[inline(always)]
pub(crate) fn for_each_pair(x: &[f32], y: &[f32], mut f: impl FnMut(Lanes, Lanes)) {
    let (xs, ys) = (x.chunks_exact(16), y[..x.len()].chunks_exact(16));
    let tails = (xs.remainder(), ys.remainder());
    for (a, b) in xs.zip(ys) {
        f(load(a), load(b));
    }
    if !tails.0.is_empty() {
        f(load_tail(tails.0, 0.0), load_tail(tails.1, 0.0));
    }
}

/// As [`for_each`] over three slices of one length.
#[inline(always)]
pub(crate) fn for_each_triple(x: &[f32], y: &[f32], z: &[f32], mut f: impl FnMut(Lanes, Lanes, Lanes)) {
    let (y, z) = (&y[..x.len()], &z[..x.len()]);
    let (xs, ys, zs) = (x.chunks_exact(16), y.chunks_exact(16), z.chunks_exact(16));
    let tails = (xs.remainder(), ys.remainder(), zs.remainder());
    for ((a, b), c) in xs.zip(ys).zip(zs) {
        f(load(a), load(b), load(c));
    }
    if !tails.0.is_empty() {
        f(load_tail(tails.0, 0.0), load_tail(tails.1, 0.0), load_tail(tails.2, 0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::{each, for_each, max, splat, sum};

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
    fn tails_are_padded_with_zeros() {
        let mut total = 0.0;
        for_each(&[1.0; 35], |v| total += sum(v));
        assert_eq!(total, 35.0);
    }
}
