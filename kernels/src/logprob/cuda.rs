//! Launches of `cuda.cu`.
use crate::cuda::{Device, Grid, Kernel, Operand, small};

/// Values that [`forward`] gives a row: log-prob, entropy, largest `z`, ln of the sum.
pub const STATS: usize = 4;

const fn kernel(name: &'static str) -> Kernel {
    Kernel { folder: "logprob", name }
}

/// Which token of each row is asked for, and what its logits are divided by. `[rows]`
pub struct Targets<'a, D: Device> {
    /// A token outside the vocabulary gets NaN.
    pub tokens: D::View<'a, u32>,
    /// Positive.
    pub temperatures: D::View<'a, f32>,
}

/// Statistics of each row of `logits [rows, vocab]`, by kind: `stats [STATS, rows]`.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When a length does not fit the shape.
pub fn forward<D: Device>(
    device: &D,
    logits: &D::View<'_, f32>,
    targets: &Targets<'_, D>,
    stats: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let (rows, vocab) = shape(logits, targets);
    assert_eq!(D::len_mut(stats), STATS * rows, "statistics of {rows} rows");
    let operands = vec![
        Operand::In(D::again(logits)),
        Operand::Indices(D::again(&targets.tokens)),
        Operand::In(D::again(&targets.temperatures)),
        Operand::Out(D::again_mut(stats)),
        Operand::Count(small(rows)),
        Operand::Count(small(vocab)),
    ];
    device.launch(kernel("logprob_forward"), Grid::rows(rows, vocab, 3), operands)
}

/// `d_logits` from the forward's `stats` and the gradients with respect to them, `up [STATS, rows]`, of which the first two
/// kinds count.
///
/// # Errors
/// When the launch fails.
///
/// # Panics
/// When a length does not fit the shape.
pub fn backward<D: Device>(
    device: &D,
    logits: &D::View<'_, f32>,
    targets: &Targets<'_, D>,
    stats: &D::View<'_, f32>,
    up: &D::View<'_, f32>,
    d_logits: &mut D::ViewMut<'_, f32>,
) -> Result<(), D::Error> {
    let (rows, vocab) = shape(logits, targets);
    assert_eq!([D::len(stats), D::len(up)], [STATS * rows; 2], "statistics of {rows} rows");
    assert_eq!(D::len_mut(d_logits), rows * vocab, "{rows} rows of {vocab}");
    let operands = vec![
        Operand::In(D::again(logits)),
        Operand::Indices(D::again(&targets.tokens)),
        Operand::In(D::again(&targets.temperatures)),
        Operand::In(D::again(stats)),
        Operand::In(D::again(up)),
        Operand::Out(D::again_mut(d_logits)),
        Operand::Count(small(rows)),
        Operand::Count(small(vocab)),
    ];
    device.launch(kernel("logprob_backward"), Grid::rows(rows, vocab, 0), operands)
}

fn shape<D: Device>(logits: &D::View<'_, f32>, targets: &Targets<'_, D>) -> (usize, usize) {
    let rows = D::len(&targets.tokens);
    assert_eq!(D::len(&targets.temperatures), rows, "a temperature for each of {rows} rows");
    let vocab = D::len(logits) / rows.max(1);
    assert_eq!(D::len(logits), rows * vocab, "{rows} rows of {vocab}");
    (rows, vocab)
}
