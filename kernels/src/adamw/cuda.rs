//! Launches of `cuda.cu`.
use super::Step;
use crate::cuda::{Device, Grid, Kernel, Operand, small};

/// One update in place, as [`step`](super::step) on the CPU, but that the gradient stays.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When the lengths differ.
pub fn step<D: Device>(
    device: &D,
    step: &Step,
    gradient: &D::View<'_, f32>,
    weight: &mut D::ViewMut<'_, f32>,
    (first, second): (&mut D::ViewMut<'_, f32>, &mut D::ViewMut<'_, f32>),
) -> Result<(), D::Error> {
    let count = D::len(gradient);
    assert_eq!([D::len_mut(weight), D::len_mut(first), D::len_mut(second)], [count; 3]);
    let mut operands = vec![
        Operand::In(D::again(gradient)),
        Operand::Out(D::again_mut(weight)),
        Operand::Out(D::again_mut(first)),
        Operand::Out(D::again_mut(second)),
    ];
    operands.extend(step.factors().map(Operand::Factor));
    operands.push(Operand::Count(small(count)));
    device.launch(Kernel { folder: "adamw", name: "adamw_step" }, Grid::values(count), operands)
}
