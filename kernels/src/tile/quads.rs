//! The definition of C3 in plain Rust.
use super::{Store, Tile};
use crate::int8::{BEGINNING, ROW_BLOCK, SCALE, STEPS, WEIGHT_BLOCK};

/// One row and one vector at a time, see [`super::run`].
///
/// # Safety
/// As there.
pub(super) unsafe fn run(rows: usize, vecs: usize, store: Store, t: &Tile) {
    for r in 0..rows {
        for v in 0..vecs {
            // SAFETY: elements of the caller's tile.
            unsafe {
                let c = t.c.add(r * t.c_row + v * t.c_vec).cast::<[f32; 16]>();
                let old = c.read_unaligned();
                let mut acc = if store == Store::Chain { old } else { [0.0; 16] };
                for group in 0..t.k / WEIGHT_BLOCK {
                    let a = t.a.add(r * t.a_row + group * ROW_BLOCK);
                    let b = t.b.add(group * WEIGHT_BLOCK * t.b_k + v * t.b_vec);
                    let mut sums = [a.add(BEGINNING).cast::<i32>().read(); 16];
                    for step in 0..STEPS {
                        let word = a.add(step).cast::<u32>().read();
                        let columns = b.add(step * t.b_k).cast::<[u32; 16]>().read_unaligned();
                        for i in 0..16 {
                            sums[i] += dot(columns[i], word);
                        }
                    }
                    let (own, scales) = (*a.add(SCALE), b.add(STEPS * t.b_k).cast::<[f32; 16]>().read_unaligned());
                    for i in 0..16 {
                        acc[i] = (sums[i] as f32 * own).mul_add(scales[i], acc[i]);
                    }
                }
                if store == Store::Add {
                    for i in 0..16 {
                        acc[i] += old[i];
                    }
                }
                c.write_unaligned(acc);
            }
        }
    }
}

/// The sum of four products: bytes of a weight without sign, of an activation with one.
#[inline(always)]
fn dot(weights: u32, values: u32) -> i32 {
    let product =
        |byte: u32| (weights >> (8 * byte) & 0xff).cast_signed() * (values << (24 - 8 * byte)).cast_signed().wrapping_shr(24);
    product(0) + product(1) + product(2) + product(3)
}
