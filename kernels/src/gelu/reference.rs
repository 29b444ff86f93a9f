//! The definition in f64 with libm's tanh.
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

const CUBIC: f64 = 0.044_715;

fn inner(x: f64) -> f64 {
    FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (x + CUBIC * x.powi(3))
}

/// `h` of each value.
pub(super) fn forward(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).map(|x| 0.5 * x * (1.0 + inner(x).tanh())).collect()
}

/// `dx` of each value.
pub(super) fn backward(dh: &[f32], x: &[f32]) -> Vec<f64> {
    let one = |(dh, x): (&f32, &f32)| {
        let (dh, x) = (f64::from(*dh), f64::from(*x));
        let t = inner(x).tanh();
        let slope = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (1.0 + 3.0 * CUBIC * x * x);
        dh * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
    };
    dh.iter().zip(x).map(one).collect()
}
