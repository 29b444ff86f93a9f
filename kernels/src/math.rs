//! Elementary functions from correctly rounded operations only, so that every machine computes the same bits.
use crate::lanes::Lanes;
use std::f64::consts::{FRAC_2_PI, FRAC_PI_2, LN_2, LOG2_E};

/// ln 2 with its low 12 bits zero, so that its product with a small integer is exact.
const LN2_HIGH: f32 = 0.693_145_75;
/// What `LN2_HIGH` lacks.
const LN2_LOW: f32 = 1.428_606_8e-6;
/// 1.5 * 2^23: adding it rounds an `f32` to the nearest integer and leaves that in the low bits.
const ROUND: f32 = 12_582_912.0;
/// Below this `exp` gives zero (the smallest normal number lies here).
const EXP_LOWEST: f32 = -87.336_54;
/// Above this `exp` gives infinity.
const EXP_HIGHEST: f32 = 88.722_83;
/// pi/2 minus its nearest `f64`.
const FRAC_PI_2_LOW: f64 = 6.123_233_995_736_766e-17;
/// ln 2 minus its nearest `f64`.
const LN_2_LOW: f64 = 2.319_046_813_846_3e-17;

/// e^x, within 1 unit in the last place; 0 where the result would be subnormal, NaN for NaN.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x)); // |r| <= ln 2 / 2
    let mut p = 1.0 / 5040.0;
    p = r.mul_add(p, 1.0 / 720.0);
    p = r.mul_add(p, 1.0 / 120.0);
    p = r.mul_add(p, 1.0 / 24.0);
    p = r.mul_add(p, 1.0 / 6.0);
    p = r.mul_add(p, 0.5);
    p = r.mul_add(p, 1.0);
    p = r.mul_add(p, 1.0);
    // 2^n in two factors, since n reaches 128.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let y = p * power(half) * power(n.wrapping_sub(half));
    let y = if x < EXP_LOWEST { 0.0 } else { y };
    if x > EXP_HIGHEST { f32::INFINITY } else { y }
}

/// [`exp`] of 16 values.
#[inline(always)]
pub(crate) fn exp16(x: Lanes) -> Lanes {
    let mut y = [0.0; 16];
    for i in 0..16 {
        y[i] = exp(x[i]);
    }
    y
}

/// e^x for moderate `x` (the result a normal number).
#[must_use]
pub fn exp64(x: f64) -> f64 {
    let n = (x * LOG2_E).round_ties_even();
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2, x));
    let mut p = 1.0;
    for i in (1..=14).rev() {
        p = (r / f64::from(i)).mul_add(p, 1.0);
    }
    let half = (n / 2.0).floor();
    let power = |n: f64| f64::from_bits(((n + 1023.0) as u64) << 52);
    p * power(half) * power(n - half)
}

/// Natural logarithm of a positive, normal number; NaN for anything else but infinity.
#[must_use]
pub fn ln(x: f64) -> f64 {
    if x == f64::INFINITY {
        return x;
    }
    if x.is_nan() || x < f64::MIN_POSITIVE {
        return f64::NAN;
    }
    let mut exponent = ((x.to_bits() >> 52) as i64 - 1023) as f64;
    let mut m = f64::from_bits((x.to_bits() & ((1 << 52) - 1)) | (1023 << 52)); // in [1, 2)
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1.0;
    }
    // ln m = 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ..), |s| <= 0.172
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut p = 0.0;
    for i in (0..=11).rev() {
        p = s2.mul_add(p, 1.0 / f64::from(2 * i + 1));
    }
    exponent.mul_add(LN_2, (2.0 * s).mul_add(p, exponent * LN_2_LOW))
}

/// Sine and cosine, for |x| up to about 10^8.
#[must_use]
pub fn sin_cos(x: f64) -> (f64, f64) {
    let k = (x * FRAC_2_PI).round_ties_even();
    let r = k.mul_add(-FRAC_PI_2_LOW, k.mul_add(-FRAC_PI_2, x)); // |r| <= pi/4
    let r2 = r * r;
    let (mut s, mut c) = (1.0, 1.0);
    for i in (1..=9).rev() {
        let i = f64::from(i);
        s = (-r2 / ((2.0 * i) * (2.0 * i + 1.0))).mul_add(s, 1.0);
        c = (-r2 / ((2.0 * i - 1.0) * (2.0 * i))).mul_add(c, 1.0);
    }
    s *= r;
    match (k as i64).rem_euclid(4) {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::{exp, exp64, ln, sin_cos};
    use crate::testing::fingerprint;

    #[test]
    fn exp_is_within_one_unit_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in -870_000..=887_000 {
            let x = i as f32 / 10_000.0;
            let want = f64::from(x).exp();
            let unit = f64::from(want as f32) * f64::from(f32::EPSILON) / 2.0;
            worst = worst.max((f64::from(exp(x)) - want).abs() / unit);
        }
        assert!(worst < 2.0, "{worst} half units");
    }

    #[test]
    fn exp_of_special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(88.7).is_finite());
    }

    #[test]
    fn f64_functions_are_close_to_libm() {
        for i in 1..20_000 {
            let x = f64::from(i) * 0.37;
            assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0), "ln {x}");
            let (s, c) = sin_cos(x);
            assert!((s - x.sin()).abs() < 4e-16 * x.max(10.0) && (c - x.cos()).abs() < 4e-16 * x.max(10.0), "sin, cos {x}");
            let y = x / 100.0 - 30.0;
            assert!((exp64(y) / y.exp() - 1.0).abs() < 1e-15, "exp {y}");
        }
        assert!(ln(0.0).is_nan() && ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn bits_are_the_committed_ones() {
        let values: Vec<f32> = (-2000..2000).map(|i| exp(i as f32 * 0.043_21)).collect();
        assert_eq!(fingerprint(&values), 0x256f_d742_9b9f_bffd, "exp");
        let tables = (1..2000).flat_map(|i| {
            let x = f64::from(i) * 1.618;
            let (s, c) = sin_cos(x);
            [ln(x) as f32, s as f32, c as f32, exp64(x / 100.0) as f32]
        });
        assert_eq!(fingerprint(&tables.collect::<Vec<_>>()), 0x590a_88ee_d044_8b7d, "ln, sin, cos, exp64");
    }
}
