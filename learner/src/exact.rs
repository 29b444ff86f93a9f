//! `exp` and `cos` from IEEE additions and multiplications alone: the system's libm differs between vendors and
//! versions by an ulp, and the bits of a step may not.
//!
//! Errors are below 2 ulp over the ranges used here.
use std::f64::consts::{LOG2_E, PI};

/// High part of ln 2: its last 32 bits are zero, so that `k * LN2_HI` is exact for every exponent `k`.
const LN2_HI: f64 = 6.931_471_803_691_238e-1;
/// ln 2 - `LN2_HI`.
const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;

/// e to the power `x`. Exactly 1 at 0.
#[must_use]
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x > 709.782_712_893_384 {
        return f64::INFINITY;
    }
    if x < -745.133_219_101_941_2 {
        return 0.0;
    }
    let k = (x * LOG2_E).round_ties_even();
    let r = (x - k * LN2_HI) - k * LN2_LO;
    // Taylor series on |r| <= ln(2) / 2, where the term of degree 14 is below 5e-18.
    let mut sum = 1.0;
    for degree in (1..=13).rev() {
        sum = 1.0 + sum * r / f64::from(degree);
    }
    // Two factors, so that results below the normal range are rounded once and those near the top do not overflow early.
    #[expect(clippy::cast_possible_truncation, reason = "|k| <= 1075 by the range checks above")]
    let k = k as i32;
    sum * power_of_two(k / 2) * power_of_two(k - k / 2)
}

/// cos(pi * x) for `x` in 0..=1.
#[must_use]
pub fn cos_pi(x: f64) -> f64 {
    // cos(pi x) = -sin(pi (x - 1/2)), whose series converges on |y| <= pi / 2 with every term alternating.
    let y = PI * (x - 0.5);
    let square = y * y;
    let mut sum = 1.0;
    for n in (1..=12).rev() {
        let n = f64::from(n);
        sum = 1.0 - sum * square / ((2.0 * n) * (2.0 * n + 1.0));
    }
    -y * sum
}

/// 2 to the power `k`, |k| <= 1022.
fn power_of_two(k: i32) -> f64 {
    f64::from_bits(u64::from((1023 + k).unsigned_abs()) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn edges() {
        assert_eq!(exp(0.0).to_bits(), 1.0f64.to_bits());
        assert_eq!(exp(-0.0).to_bits(), 1.0f64.to_bits());
        assert_eq!(exp(710.0), f64::INFINITY);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan());
        assert!(exp(-740.0) > 0.0);
        assert_eq!(cos_pi(0.5), 0.0);
        assert!((cos_pi(0.0) - 1.0).abs() < 1e-15 && (cos_pi(1.0) + 1.0).abs() < 1e-15);
    }

    proptest! {
        #[test]
        fn agrees_with_the_systems_own(x in -700.0f64..700.0) {
            prop_assert!((exp(x) / x.exp() - 1.0).abs() < 1e-15, "exp({x})");
        }

        #[test]
        fn cosine_agrees_with_the_systems_own(x in 0.0f64..=1.0) {
            prop_assert!((cos_pi(x) - (PI * x).cos()).abs() < 1e-15);
        }
    }
}
