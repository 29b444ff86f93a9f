//! The definition in f64 with libm.

fn sigmoid(g: f64) -> f64 {
    1.0 / (1.0 + (-g).exp())
}

/// `h` for each pair.
pub(super) fn forward(gate: &[f32], up: &[f32]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| f64::from(*g) * sigmoid(f64::from(*g)) * f64::from(*u)).collect()
}

/// `d gate` and `d up`.
pub(super) fn backward(dh: &[f32], gate: &[f32], up: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let one = |((dh, g), u): ((&f32, &f32), &f32)| {
        let (dh, g, u) = (f64::from(*dh), f64::from(*g), f64::from(*u));
        let s = sigmoid(g);
        (dh * u * (s + g * s * (1.0 - s)), dh * g * s)
    };
    dh.iter().zip(gate).zip(up).map(one).unzip()
}
