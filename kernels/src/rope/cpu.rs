//! The table of sines and cosines, and rows in parallel.
use crate::Cpu;
use crate::math::{exp64, ln, sin_cos};
use crate::path::kernel;

/// Rows of a task.
const ROWS: usize = 32;

/// Cosines and sines by position, grown on demand.
///
/// Frequency and angle are rounded to f32 as the Hugging Face implementation rounds them; their sine and cosine are
/// computed in f64.
#[derive(Debug, Clone)]
pub struct RopeTable {
    frequencies: Vec<f32>,
    /// `[positions][2][half]`
    turns: Vec<f32>,
}

impl RopeTable {
    /// For heads of `head_dim` (even) and base `theta`.
    #[must_use]
    pub fn new(head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let power = |i: usize| exp64(ln(theta) * f64::from((2 * i) as f32 / head_dim as f32)) as f32;
        Self { frequencies: (0..half).map(|i| 1.0 / power(i)).collect(), turns: Vec::new() }
    }

    /// Makes positions `0..positions` available.
    pub fn reserve(&mut self, positions: usize) {
        let half = self.frequencies.len();
        let known = self.turns.len().checked_div(2 * half).unwrap_or(positions);
        for position in known..positions.max(known).next_multiple_of(64) {
            let turns = self.frequencies.iter().map(|f| sin_cos(f64::from(position as f32 * f)));
            let (sines, cosines): (Vec<f64>, Vec<f64>) = turns.unzip();
            self.turns.extend(cosines.into_iter().chain(sines).map(|x| x as f32));
        }
    }

    /// All that is reserved: cosines, then sines of each position. `[positions][2][head_dim / 2]`
    #[must_use]
    pub fn turns(&self) -> &[f32] {
        &self.turns
    }

    /// Cosines, then sines of a position that was reserved.
    fn at(&self, position: u32) -> &[f32] {
        let width = 2 * self.frequencies.len();
        &self.turns[position as usize * width..][..width]
    }
}

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The forward pass.
    Forward,
    /// Its transpose, for gradients.
    Backward,
}

/// Turns the heads of each row of `x [rows, heads * head_dim]` by its position, in place.
///
/// # Panics
/// When a position was not reserved or `x` does not fit.
pub fn rotate(cpu: &Cpu, table: &RopeTable, positions: &[u32], direction: Direction, x: &mut [f32]) {
    let width = x.len() / positions.len().max(1);
    assert_eq!(x.len(), positions.len() * width, "{} rows", positions.len());
    cpu.pool().parts(x, ROWS * width, |part, x| {
        for (row, position) in x.chunks_exact_mut(width).zip(&positions[part * ROWS..]) {
            let (cosines, sines) = table.at(*position).split_at(table.frequencies.len());
            rotate_row(cpu.path(), cosines, sines, direction == Direction::Backward, row);
        }
    });
}

kernel! {
    fn rotate_row(cosines: &[f32], sines: &[f32], backward: bool, row: &mut [f32]) {
        for head in row.chunks_exact_mut(2 * cosines.len()) {
            let (first, second) = head.split_at_mut(cosines.len());
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                let s = if backward { -*s } else { *s };
                let (x, y) = (*a, *b);
                *a = x.mul_add(*c, -(y * s));
                *b = y.mul_add(*c, x * s);
            }
        }
    }
}
