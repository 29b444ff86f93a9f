//! What the microkernel reaches when its operands stay in the first-level cache: the roof over every product.
use super::{Format, MAX_ROWS, Store, Tile, run};
use crate::Cpu;
use crate::int8::{GROUP, WEIGHT_BLOCK};

const K: usize = 128;
/// Words of a row, which has a few more than its products.
const ROW: usize = 2 * K;
const COLUMNS: usize = 48;

/// Computes `rounds` tiles of 8 x 48 x 126 or 128 words on every thread; gives the floating-point operations done by all of them.
pub fn ceiling(cpu: &Cpu, format: Format, rounds: usize) -> f64 {
    let threads = cpu.pool().threads();
    let (k, terms) = match format {
        Format::F32 => (K, K),
        Format::Bf16 => (K, 2 * K),
        Format::Int8 => (K / WEIGHT_BLOCK * WEIGHT_BLOCK, K / WEIGHT_BLOCK * GROUP),
    };
    cpu.pool().run(threads, |_| {
        let (a, b) = ([1.0f32; MAX_ROWS * ROW], [0.5f32; K * COLUMNS]);
        let mut c = [0.0f32; MAX_ROWS * COLUMNS];
        for _ in 0..rounds {
            let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
            let tile = Tile { k, a, a_row: ROW, a_k: 1, b, b_k: COLUMNS, b_vec: 16, c, c_row: COLUMNS, c_vec: 16 };
            // SAFETY: A is 8 rows of 256, B 128 rows of 48, C 8 rows of 48, all on this task's stack.
            unsafe { run(cpu.path(), format, MAX_ROWS, COLUMNS / 16, Store::Set, &tile) };
        }
        std::hint::black_box(&mut c);
    });
    (2 * MAX_ROWS * COLUMNS * terms * rounds * threads) as f64
}
