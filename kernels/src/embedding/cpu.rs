//! Gather in parallel over rows; scatter in parallel over columns, tokens in order.
#![expect(unsafe_code, reason = "tasks add to different columns of the same panels")]
use crate::Cpu;
use crate::linear::{Matrix, packed_index, packed_len};
use crate::pool::Disjoint;

/// Rows of a gather's task.
const ROWS: usize = 8;
/// Columns of a scatter's task.
const COLUMNS: usize = 64;

/// `x[row] = W[tokens[row]]` for a packed `W [vocab, hidden]`.
///
/// # Panics
/// When a token is not below `vocab` or a length does not fit.
pub fn gather(cpu: &Cpu, weight: Matrix<'_>, vocab: usize, hidden: usize, tokens: &[u32], x: &mut [f32]) {
    check(weight.fits(vocab, hidden), vocab, hidden, tokens, x.len());
    cpu.pool().parts(x, ROWS * hidden, |part, x| {
        for (row, token) in x.chunks_exact_mut(hidden).zip(&tokens[part * ROWS..]) {
            for (k, value) in row.iter_mut().enumerate() {
                *value = weight.at(*token as usize, k, hidden);
            }
        }
    });
}

/// `x[row] += W[tokens[row]]`: a second embedding of the same rows.
///
/// # Panics
/// When a token is not below `vocab` or a length does not fit.
pub fn gather_add(cpu: &Cpu, weight: Matrix<'_>, vocab: usize, hidden: usize, tokens: &[u32], x: &mut [f32]) {
    check(weight.fits(vocab, hidden), vocab, hidden, tokens, x.len());
    cpu.pool().parts(x, ROWS * hidden, |part, x| {
        for (row, token) in x.chunks_exact_mut(hidden).zip(&tokens[part * ROWS..]) {
            for (k, value) in row.iter_mut().enumerate() {
                *value += weight.at(*token as usize, k, hidden);
            }
        }
    });
}

/// `dW[tokens[row]] += dx[row]`, rows ascending.
///
/// # Panics
/// When a token is not below `vocab` or a length does not fit.
pub fn scatter_add(cpu: &Cpu, gradient: &mut [f32], vocab: usize, hidden: usize, tokens: &[u32], dx: &[f32]) {
    check(gradient.len() == packed_len(vocab, hidden), vocab, hidden, tokens, dx.len());
    let gradient = Disjoint::new(gradient);
    cpu.pool().run(hidden.div_ceil(COLUMNS), |task| {
        let columns = task * COLUMNS..((task + 1) * COLUMNS).min(hidden);
        for (row, token) in dx.chunks_exact(hidden).zip(tokens) {
            for k in columns.clone() {
                // SAFETY: an element belongs to one column, and a column to one task.
                let sum = unsafe { gradient.slice(packed_index(*token as usize, k, hidden), 1) };
                sum[0] += row[k];
            }
        }
    });
}

fn check(fits: bool, vocab: usize, hidden: usize, tokens: &[u32], rows: usize) {
    assert!(fits && rows == tokens.len() * hidden, "embedding {vocab} x {hidden}");
    assert!(tokens.iter().all(|token| (*token as usize) < vocab), "token outside the vocabulary of {vocab}");
}
