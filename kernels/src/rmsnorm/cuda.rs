//! Launches of `cuda.cu`.
use crate::cuda::{Device, Grid, Kernel, Operand, THREADS, small};

/// Rows whose share of the weight's gradient one thread adds up: part of the order of the sum.
const ROWS_A_PART: usize = 128;

const fn kernel(name: &'static str) -> Kernel {
    Kernel { folder: "rmsnorm", name }
}

/// `y = norm(x)` of rows of `weight`'s length.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When a length does not fit the shape.
pub fn forward<D: Device>(
    device: &D,
    x: &D::View<'_, f32>,
    weight: &D::View<'_, f32>,
    eps: f32,
    y: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let (rows, width) = shape::<D>(x, weight);
    assert_eq!(D::len_mut(y), rows * width, "rmsnorm of rows of {width}");
    let operands = vec![
        Operand::In(D::again(x)),
        Operand::In(D::again(weight)),
        Operand::Out(D::again_mut(y)),
        Operand::Factor(eps),
        Operand::Count(small(width)),
    ];
    device.launch(kernel("rmsnorm_forward"), Grid::rows(rows, width, 1), operands)
}

/// `sum = x + delta` and `y = norm(sum)`.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When a length does not fit the shape.
pub fn forward_add<D: Device>(
    device: &D,
    (x, delta): (&D::View<'_, f32>, &D::View<'_, f32>),
    weight: &D::View<'_, f32>,
    eps: f32,
    sum: &mut D::ViewMut<'_, f32>,
    y: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let (rows, width) = shape::<D>(x, weight);
    let lengths = [D::len(delta), D::len_mut(sum), D::len_mut(y)];
    assert_eq!(lengths, [rows * width; 3], "rmsnorm of rows of {width}");
    let operands = vec![
        Operand::In(D::again(x)),
        Operand::In(D::again(delta)),
        Operand::In(D::again(weight)),
        Operand::Out(D::again_mut(sum)),
        Operand::Out(D::again_mut(y)),
        Operand::Factor(eps),
        Operand::Count(small(width)),
    ];
    device.launch(kernel("rmsnorm_forward_add"), Grid::rows(rows, width, 1), operands)
}

/// Values of working memory that [`backward`] needs.
#[must_use]
pub fn scratch_len(rows: usize, width: usize) -> (usize, usize) {
    (rows, rows.div_ceil(ROWS_A_PART) * width)
}

/// Both gradients. `scratch` as [`scratch_len`] says: of the rows' scales, and of parts of the weight's gradient.
///
/// # Errors
/// When a launch fails.
///
/// # Panics
/// When a length does not fit the shape.
pub fn backward<D: Device>(
    device: &D,
    (dy, x): (&D::View<'_, f32>, &D::View<'_, f32>),
    weight: &D::View<'_, f32>,
    eps: f32,
    (dx, d_weight): (&mut D::ViewMut<'_, f32>, &mut D::ViewMut<'_, f32>),
    (rstd, parts): (&mut D::ViewMut<'_, f32>, &mut D::ViewMut<'_, f32>),
) -> Result<(), D::Error> {
    let (rows, width) = shape::<D>(x, weight);
    assert_eq!([D::len(dy), D::len_mut(dx)], [rows * width; 2], "rmsnorm of rows of {width}");
    assert_eq!(D::len_mut(d_weight), width, "rmsnorm of rows of {width}");
    assert_eq!((D::len_mut(rstd), D::len_mut(parts)), scratch_len(rows, width), "rmsnorm of rows of {width}");
    let operands = vec![
        Operand::In(D::again(dy)),
        Operand::In(D::again(x)),
        Operand::In(D::again(weight)),
        Operand::Out(D::again_mut(dx)),
        Operand::Out(D::again_mut(rstd)),
        Operand::Factor(eps),
        Operand::Count(small(width)),
    ];
    device.launch(kernel("rmsnorm_backward"), Grid::rows(rows, width, 1), operands)?;

    let count = rows.div_ceil(ROWS_A_PART);
    let columns = Grid { blocks: [small(width.div_ceil(THREADS)), 1, 1], threads: THREADS as u32, shared_bytes: 0 };
    let operands = vec![
        Operand::In(D::again(dy)),
        Operand::In(D::again(x)),
        Operand::In(D::read(rstd)),
        Operand::Out(D::again_mut(parts)),
        Operand::Count(small(rows)),
        Operand::Count(small(ROWS_A_PART)),
        Operand::Count(small(width)),
    ];
    // A grid's y goes to 65,535: 8 million rows.
    assert!(count <= usize::from(u16::MAX), "{rows} rows in one launch");
    let grid = Grid { blocks: [columns.blocks[0], small(count), 1], ..columns };
    device.launch(kernel("rmsnorm_weight_parts"), grid, operands)?;
    let operands = vec![
        Operand::In(D::read(parts)),
        Operand::Out(D::again_mut(d_weight)),
        Operand::Count(small(count)),
        Operand::Count(small(width)),
    ];
    device.launch(kernel("rmsnorm_weight_sum"), columns, operands)
}

fn shape<D: Device>(x: &D::View<'_, f32>, weight: &D::View<'_, f32>) -> (usize, usize) {
    let width = D::len(weight);
    let rows = D::len(x) / width.max(1);
    assert_eq!(D::len(x), rows * width, "rmsnorm of rows of {width}");
    (rows, width)
}
