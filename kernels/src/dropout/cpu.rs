//! Rows in parallel.
use crate::Cpu;
use crate::sampling::philox;

/// Rows of a task.
const ROWS: usize = 4;

/// What decides which elements of some rows are dropped.
#[derive(Debug, Clone, Copy)]
pub struct Drops<'a> {
    /// Key of each row's sequence. `[rows]`
    pub keys: &'a [u64],
    /// Position of each row in its sequence. `[rows]`
    pub positions: &'a [u32],
    /// Number of the block.
    pub layer: u32,
    /// Number of the module in it.
    pub module: u32,
    /// Probability of being dropped, below 1.
    pub probability: f32,
}

impl Drops<'_> {
    /// `task(column, factor)` for each column of a row, the factor being -1 where it is dropped and `p / (1 - p)` else.
    fn each(&self, row: usize, columns: usize, mut task: impl FnMut(usize, f32)) {
        let (key, kept) = (self.keys[row], self.probability / (1.0 - self.probability));
        let limit = (f64::from(self.probability) * 4_294_967_296.0) as u64;
        for first in (0..columns).step_by(4) {
            let counter = [first as u32 / 4, self.layer, self.module, self.positions[row]];
            let words = philox([key as u32, (key >> 32) as u32], counter);
            for (column, word) in (first..columns).zip(words) {
                task(column, if u64::from(word) < limit { -1.0 } else { kept });
            }
        }
    }
}

/// `out = x~ - x` for `x [rows, n]`.
///
/// # Panics
/// When a length does not fit.
pub fn change(cpu: &Cpu, drops: Drops<'_>, x: &[f32], out: &mut [f32]) {
    rows(cpu, drops, x, out, |out, x, factor| *out = x * factor);
}

/// Adds the gradient by `x` to `dx`, given that by `x~ - x`. `[rows, n]`
///
/// # Panics
/// When a length does not fit.
pub fn add_gradient(cpu: &Cpu, drops: Drops<'_>, gradient: &[f32], dx: &mut [f32]) {
    rows(cpu, drops, gradient, dx, |dx, gradient, factor| *dx = gradient.mul_add(factor, *dx));
}

fn rows(cpu: &Cpu, drops: Drops<'_>, x: &[f32], out: &mut [f32], apply: impl Fn(&mut f32, f32, f32) + Sync) {
    let count = drops.keys.len();
    let n = x.len() / count.max(1);
    assert_eq!((x.len(), out.len(), drops.positions.len()), (count * n, count * n, count), "{count} rows of {n}");
    cpu.pool().parts(out, ROWS * n, |part, out| {
        for (index, out) in out.chunks_exact_mut(n).enumerate() {
            let row = part * ROWS + index;
            let x = &x[row * n..][..n];
            drops.each(row, n, |column, factor| apply(&mut out[column], x[column], factor));
        }
    });
}
