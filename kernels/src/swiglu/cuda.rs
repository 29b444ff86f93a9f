//! Launches of `cuda.cu`.
use crate::cuda::{Device, Grid, Kernel, Operand, small};

const fn kernel(name: &'static str) -> Kernel {
    Kernel { folder: "swiglu", name }
}

/// `h = silu(gate) * up`.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When the lengths differ.
pub fn forward<D: Device>(
    device: &D,
    gate: &D::View<'_, f32>,
    up: &D::View<'_, f32>,
    h: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let count = D::len_mut(h);
    assert_eq!([D::len(gate), D::len(up)], [count; 2]);
    let operands =
        vec![Operand::In(D::again(gate)), Operand::In(D::again(up)), Operand::Out(D::again_mut(h)), Operand::Count(small(count))];
    device.launch(kernel("swiglu_forward"), Grid::values(count), operands)
}

/// Gradients with respect to `gate` and `up`.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When the lengths differ.
pub fn backward<D: Device>(
    device: &D,
    dh: &D::View<'_, f32>,
    (gate, up): (&D::View<'_, f32>, &D::View<'_, f32>),
    (d_gate, d_up): (&mut D::ViewMut<'_, f32>, &mut D::ViewMut<'_, f32>),
) -> Result<(), D::Error> {
    let count = D::len(dh);
    assert_eq!([D::len(gate), D::len(up), D::len_mut(d_gate), D::len_mut(d_up)], [count; 4]);
    let operands = vec![
        Operand::In(D::again(dh)),
        Operand::In(D::again(gate)),
        Operand::In(D::again(up)),
        Operand::Out(D::again_mut(d_gate)),
        Operand::Out(D::again_mut(d_up)),
        Operand::Count(small(count)),
    ];
    device.launch(kernel("swiglu_backward"), Grid::values(count), operands)
}
