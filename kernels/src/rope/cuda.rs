//! Launches of `cuda.cu`.
use super::Direction;
use crate::cuda::{Device, Grid, Kernel, Operand, small};

const fn kernel(name: &'static str) -> Kernel {
    Kernel { folder: "rope", name }
}

/// `y` is `x [rows, heads * head_dim]`, each row turned by its position. `turns` as [`RopeTable`](super::RopeTable::turns)
/// gives them; a position outside them gives NaN.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When a length does not fit the shape.
pub fn rotate<D: Device>(
    device: &D,
    x: &D::View<'_, f32>,
    (turns, head_dim): (&D::View<'_, f32>, usize),
    positions: &D::View<'_, u32>,
    direction: Direction,
    y: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let rows = D::len(positions);
    let width = D::len(x) / rows.max(1);
    assert_eq!([D::len(x), D::len_mut(y)], [rows * width; 2], "{rows} rows of {width}");
    assert!(head_dim.is_multiple_of(2) && width.is_multiple_of(head_dim), "heads of {head_dim} in rows of {width}");
    let operands = vec![
        Operand::In(D::again(x)),
        Operand::In(D::again(turns)),
        Operand::Indices(D::again(positions)),
        Operand::Out(D::again_mut(y)),
        Operand::Factor(if direction == Direction::Backward { -1.0 } else { 1.0 }),
        Operand::Count(small(rows)),
        Operand::Count(small(width)),
        Operand::Count(small(head_dim / 2)),
        Operand::Count(small(D::len(turns) / head_dim)),
    ];
    device.launch(kernel("rope_rotate"), Grid::values(rows * width), operands)
}

/// Puts keys and values of this pass into a store `[2, stored, width]`, keys first: row `i` goes to row `to[i]`. With
/// `turns`, keys are turned by their position on the way. A row outside the store is left out.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When a length does not fit the shape.
pub fn append<D: Device>(
    device: &D,
    (k, v): (&D::View<'_, f32>, &D::View<'_, f32>),
    turns: Option<(&D::View<'_, f32>, usize)>,
    (positions, to): (&D::View<'_, u32>, &D::View<'_, u32>),
    store: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let rows = D::len(to);
    let width = D::len(k) / rows.max(1);
    assert_eq!([D::len(k), D::len(v)], [rows * width; 2], "{rows} rows of {width}");
    assert_eq!(D::len(positions), rows, "a position for each row");
    let stored = D::len_mut(store) / (2 * width).max(1);
    assert_eq!(D::len_mut(store), 2 * stored * width, "a store of rows of {width}");
    let (table, head_dim) = turns.map_or_else(|| (D::again(k), 0), |(table, head_dim)| (D::again(table), head_dim));
    let fits = head_dim == 0 || head_dim.is_multiple_of(2) && width.is_multiple_of(head_dim);
    assert!(fits, "heads of {head_dim} in rows of {width}");
    let positions_known = D::len(&table).checked_div(head_dim).unwrap_or(0);
    let operands = vec![
        Operand::In(D::again(k)),
        Operand::In(D::again(v)),
        Operand::In(table),
        Operand::Indices(D::again(positions)),
        Operand::Indices(D::again(to)),
        Operand::Out(D::again_mut(store)),
        Operand::Count(small(rows)),
        Operand::Count(small(width)),
        Operand::Count(small(head_dim / 2)),
        Operand::Count(small(positions_known)),
        Operand::Count(small(stored)),
    ];
    device.launch(kernel("rope_append"), Grid::values(rows * width), operands)
}
