//! Every path, every tile size, every store against the reference: equal bits.
use super::{Store, Tile, reference, run};
use crate::path::Path;
use crate::testing::{bits, noise};

#[test]
fn tiles_equal_the_reference_bit_for_bit() {
    for path in Path::available() {
        for rows in 1..=8 {
            for vecs in 1..=4 {
                for (k, store) in [(0, Store::Set), (1, Store::Chain), (7, Store::Add), (65, Store::Chain), (65, Store::Set)] {
                    let columns = vecs * 16;
                    let (a, b) = (noise(1, rows * k), noise(2, k * columns));
                    let mut want = noise(3, rows * columns);
                    let mut got = want.clone();
                    reference::matrix(rows, k, columns, &a, &b, &mut want, store);
                    let c = got.as_mut_ptr();
                    let (a, b) = (a.as_ptr(), b.as_ptr());
                    let tile = Tile { k, a, a_row: k, a_k: 1, b, b_k: columns, b_vec: 16, c, c_row: columns, c_vec: 16 };
                    // SAFETY: the strides describe the dense matrices above.
                    unsafe { run(path, rows, vecs, store, &tile) };
                    assert_eq!(bits(&got), bits(&want), "{path} {rows} x {columns}, k {k}, {store:?}");
                }
            }
        }
    }
}
