//! The norms of the residual stream, of the family's kind.
use super::backward::Gradients;
use super::block::Model;
use super::layout::Part;
use cohort_kernels::layernorm::{self, Affine};
use cohort_kernels::{bias, rmsnorm};
use cohort_model::family::Norm;
use std::ops::Range;

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Before a block's attention.
    Input(usize),
    /// Before a block's MLP.
    Mlp(usize),
    /// Before the output projection.
    Final,
}

impl Place {
    /// Where its weight and its bias lie.
    fn ranges(self, model: Model<'_>) -> (Range<usize>, Range<usize>) {
        let layout = model.layout;
        match self {
            Self::Input(layer) => (layout.block(layer, Part::InputNorm), layout.block(layer, Part::InputNormBias)),
            Self::Mlp(layer) => (layout.block(layer, Part::MlpNorm), layout.block(layer, Part::MlpNormBias)),
            Self::Final => (layout.final_norm(), layout.final_norm_bias()),
        }
    }
}

/// `y` and `rstd` of each row of `x [rows, hidden]`.
pub(super) fn forward(model: Model<'_>, place: Place, x: &[f32], y: &mut [f32], rstd: &mut [f32]) {
    let (weight, bias) = place.ranges(model);
    let (weight, bias, eps) = (model.weights.vector(weight), model.weights.vector(bias), model.spec.norm_eps);
    match model.spec.family.traits().norm {
        Norm::Rms => rmsnorm::forward(model.cpu, x, weight, eps, y, rstd),
        Norm::Layer => layernorm::forward(model.cpu, x, Affine { weight, bias, eps }, y, rstd),
    }
}

/// Rows on the way back. `[rows, hidden]`, `rstd [rows]`
pub(super) struct Rows<'a> {
    /// dL/dy.
    pub(super) dy: &'a [f32],
    /// The forward's input.
    pub(super) x: &'a [f32],
    /// The forward's scales.
    pub(super) rstd: &'a [f32],
    /// dL/dx is added to it.
    pub(super) dx: &'a mut [f32],
}

/// Adds to the gradients of the input and, where they are trained, of weight and bias.
pub(super) fn backward(model: Model<'_>, place: Place, rows: Rows<'_>, gradients: &mut Gradients<'_>) {
    let Rows { dy, x, rstd, dx } = rows;
    let (own, own_bias) = place.ranges(model);
    let weight = model.weights.vector(own.clone());
    let d_weight = gradients.of(own);
    match model.spec.family.traits().norm {
        Norm::Rms => rmsnorm::backward(model.cpu, rmsnorm::Backward { dy, x, weight, rstd, dx, d_weight }),
        Norm::Layer => {
            layernorm::backward(model.cpu, layernorm::Backward { dy, x, weight, rstd, dx, d_weight });
            let d_bias = gradients.of(own_bias);
            if !d_bias.is_empty() {
                bias::backward(model.cpu, dy, d_bias);
            }
        }
    }
}
