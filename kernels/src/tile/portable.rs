//! Plain Rust; vectorised by the compiler where the baseline has fused multiply-add (AArch64).
use super::{Store, Tile};

#[expect(clippy::needless_range_loop, reason = "the index is also a stride's factor")]
unsafe fn tile<const R: usize>(store: Store, t: &Tile) {
    let mut acc = [[0.0f32; 16]; R];
    // SAFETY: the caller's promise about the tile's strides.
    unsafe {
        if store == Store::Chain {
            for r in 0..R {
                acc[r] = t.c.add(r * t.c_row).cast::<[f32; 16]>().read_unaligned();
            }
        }
        for k in 0..t.k {
            let columns = t.b.add(k * t.b_k).cast::<[f32; 16]>().read_unaligned();
            for r in 0..R {
                let value = *t.a.add(r * t.a_row + k * t.a_k);
                for i in 0..16 {
                    acc[r][i] = value.mul_add(columns[i], acc[r][i]);
                }
            }
        }
        for r in 0..R {
            let c = t.c.add(r * t.c_row).cast::<[f32; 16]>();
            if store == Store::Add {
                let old = c.read_unaligned();
                for i in 0..16 {
                    acc[r][i] += old[i];
                }
            }
            c.write_unaligned(acc[r]);
        }
    }
}

/// See [`super::run`].
///
/// # Safety
/// As there.
pub(super) unsafe fn run(rows: usize, vecs: usize, store: Store, t: &Tile) {
    for v in 0..vecs {
        let mut row = 0;
        while row < rows {
            // SAFETY: a part of the caller's tile.
            unsafe {
                let part =
                    Tile { a: t.a.add(row * t.a_row), b: t.b.add(v * t.b_vec), c: t.c.add(row * t.c_row + v * t.c_vec), ..*t };
                if rows - row >= 4 {
                    tile::<4>(store, &part);
                    row += 4;
                } else {
                    tile::<1>(store, &part);
                    row += 1;
                }
            }
        }
    }
}
