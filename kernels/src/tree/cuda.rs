//! Launches of `cuda.cu`.
use crate::cuda::{Device, Grid, Kernel, Operand, small};

/// Sums the `parts` rows of `rows` `[parts, N]` as [`sum`](super::sum) does; the sum is in the first row, the others hold sums
/// of parts.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When the values are not `parts` rows.
pub fn sum<D: Device>(device: &D, rows: &mut D::ViewMut<'_, f32>, parts: usize) -> Result<(), D::Error> {
    let count = D::len_mut(rows);
    assert!(parts > 0 && count.is_multiple_of(parts), "{count} values are not {parts} rows");
    let width = count / parts;
    let operands = vec![Operand::Out(D::again_mut(rows)), Operand::Count(small(parts)), Operand::Count(small(width))];
    device.launch(Kernel { folder: "tree", name: "tree_sum" }, Grid::values(width), operands)
}
