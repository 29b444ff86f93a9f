//! Every path, every tile size, every store against the reference: equal bits.
use super::{Format, Store, Tile, reference, run};
use crate::int8::{BEGINNING, ROW_BLOCK, SCALE, STEPS, WEIGHT_BLOCK};
use crate::path::Path;
use crate::testing::{bits, fingerprint, noise};

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
                    unsafe { run(path, Format::F32, rows, vecs, store, &tile) };
                    assert_eq!(bits(&got), bits(&want), "{path} {rows} x {columns}, k {k}, {store:?}");
                }
            }
        }
    }
}

/// Pairs whose exponents lie in a range, so that sums reach every size that matters.
fn pairs(seed: u64, len: usize, lowest: u32, span: u32) -> Vec<u32> {
    let half = |x: &f32| (x.to_bits() >> 16 & 0x807f) | (lowest + (x.to_bits() >> 3) % span) << 7;
    noise(seed, 2 * len).as_chunks::<2>().0.iter().map(|[low, high]| half(low) | half(high) << 16).collect()
}

#[test]
fn pairs_equal_the_reference_bit_for_bit_down_to_the_smallest_numbers() {
    for path in Path::available() {
        for (rows, vecs, k, store, (lowest, span)) in [
            (1, 1, 1, Store::Set, (120, 12)),
            (8, 3, 0, Store::Set, (120, 12)),
            (8, 3, 33, Store::Chain, (112, 16)),
            (5, 4, 33, Store::Add, (112, 16)),
            (8, 4, 9, Store::Set, (60, 8)),
            (7, 3, 9, Store::Chain, (58, 10)),
            (3, 2, 17, Store::Add, (1, 120)),
        ] {
            for round in 0..20 {
                let columns = vecs * 16;
                let (a, b) = (pairs(round, rows * k, lowest, span), pairs(round + 99, k * columns, lowest, span));
                let start = lowest.saturating_sub(70).max(1);
                let mut want: Vec<f32> = noise(round, rows * columns)
                    .iter()
                    .map(|x| f32::from_bits(x.to_bits() & 0x807f_ffff | start << 23))
                    .collect();
                let mut got = want.clone();
                reference::pairs(rows, k, columns, &a, &b, &mut want, store);
                let c = got.as_mut_ptr();
                let (a, b) = (a.as_ptr().cast(), b.as_ptr().cast());
                let tile = Tile { k, a, a_row: k, a_k: 1, b, b_k: columns, b_vec: 16, c, c_row: columns, c_vec: 16 };
                // SAFETY: the strides describe the dense matrices above.
                unsafe { run(path, Format::Bf16, rows, vecs, store, &tile) };
                assert_eq!(bits(&got), bits(&want), "{path} {rows} x {columns}, k {k}, {store:?}, from 2^{lowest}");
            }
        }
    }
}

#[test]
fn pairs_have_the_committed_bits() {
    let (rows, k, columns) = (8, 40, 48);
    for path in Path::available() {
        let (a, b) = (pairs(1, rows * k, 110, 20), pairs(2, k * columns, 110, 20));
        let mut c = vec![0.0f32; rows * columns];
        let (a, b, pointer) = (a.as_ptr().cast(), b.as_ptr().cast(), c.as_mut_ptr());
        let tile = Tile { k, a, a_row: k, a_k: 1, b, b_k: columns, b_vec: 16, c: pointer, c_row: columns, c_vec: 16 };
        // SAFETY: the strides describe the dense matrices above.
        unsafe { run(path, Format::Bf16, rows, 3, Store::Set, &tile) };
        assert_eq!(fingerprint(&c), 0xc35b_2980_683a_bdb3, "{path}");
    }
}

/// Groups of every byte with a scale each. `[count, block]`, or as columns `[count][block, columns]`.
fn groups(seed: u64, count: usize, block: usize, columns: usize, extreme: bool) -> Vec<u32> {
    let words = noise(seed, count * block * columns);
    let word = |(i, x): (usize, &f32)| match i / columns % block {
        SCALE => (x * 0.01).to_bits(),
        BEGINNING => (*x * 1e5) as i32 as u32,
        _ if extreme => [0xffff_ffff, 0x8080_8080, 0x7f7f_7f7f][(x.to_bits() >> 9) as usize % 3],
        _ => x.to_bits().wrapping_mul(0x9e37_79b9),
    };
    words.iter().enumerate().map(word).collect()
}

#[test]
fn groups_of_int8_equal_the_reference_bit_for_bit_and_saturate_nowhere() {
    for path in Path::available() {
        for rows in 1..=8 {
            for vecs in 1..=4 {
                for (count, store, extreme) in [
                    (0, Store::Set, false),
                    (1, Store::Chain, true),
                    (3, Store::Add, false),
                    (5, Store::Chain, false),
                    (2, Store::Set, true),
                ] {
                    let columns = vecs * 16;
                    let a = groups(rows as u64, rows * count, ROW_BLOCK, 1, extreme);
                    let b = groups(99, count, WEIGHT_BLOCK, columns, extreme);
                    let mut want = noise(3, rows * columns);
                    let mut got = want.clone();
                    reference::groups(rows, count, columns, &a, &b, &mut want, store);
                    let (a, b, c, a_row) = (a.as_ptr().cast(), b.as_ptr().cast(), got.as_mut_ptr(), count * ROW_BLOCK);
                    let k = count * WEIGHT_BLOCK;
                    let tile = Tile { k, a, a_row, a_k: 1, b, b_k: columns, b_vec: 16, c, c_row: columns, c_vec: 16 };
                    // SAFETY: the strides describe the dense blocks above.
                    unsafe { run(path, Format::Int8, rows, vecs, store, &tile) };
                    assert_eq!(bits(&got), bits(&want), "{path} {rows} x {columns}, {count} groups, {store:?}, {extreme}");
                }
            }
        }
    }
}

#[test]
fn groups_of_int8_have_the_committed_bits() {
    let (rows, count, columns) = (8, 5, 48);
    assert_eq!(STEPS, 8);
    for path in Path::available() {
        let (a, b) = (groups(1, rows * count, ROW_BLOCK, 1, false), groups(2, count, WEIGHT_BLOCK, columns, false));
        let mut c = vec![0.0f32; rows * columns];
        let (a, b, pointer, a_row, k) =
            (a.as_ptr().cast(), b.as_ptr().cast(), c.as_mut_ptr(), count * ROW_BLOCK, count * WEIGHT_BLOCK);
        let tile = Tile { k, a, a_row, a_k: 1, b, b_k: columns, b_vec: 16, c: pointer, c_row: columns, c_vec: 16 };
        // SAFETY: the strides describe the dense blocks above.
        unsafe { run(path, Format::Int8, rows, 3, Store::Set, &tile) };
        assert_eq!(fingerprint(&c), 0x33b2_9d3f_1838_8a55, "{path}");
    }
}
