//! The definition in f64 with libm.

/// Hyper-parameters in the order of the paper.
#[derive(Clone, Copy)]
pub(super) struct Hyper {
    pub(super) betas: (f64, f64),
    pub(super) eps: f64,
    pub(super) decay: f64,
    pub(super) rate: f64,
    pub(super) scale: f64,
}

/// One update of one parameter: `(w, m, v)`.
pub(super) fn step(h: &Hyper, count: i32, (w, m, v): (f64, f64, f64), gradient: f64) -> (f64, f64, f64) {
    let g = gradient * h.scale;
    let m = h.betas.0 * m + (1.0 - h.betas.0) * g;
    let v = h.betas.1 * v + (1.0 - h.betas.1) * g * g;
    let m_hat = m / (1.0 - h.betas.0.powi(count));
    let v_hat = v / (1.0 - h.betas.1.powi(count));
    (w - h.rate * h.decay * w - h.rate * m_hat / (v_hat.sqrt() + h.eps), m, v)
}
