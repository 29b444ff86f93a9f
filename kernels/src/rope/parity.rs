//! Against the f64 definition (tolerance: the angle's rounding to f32 grows with the position), and bit-equal.
use super::{Direction, RopeTable, reference, rotate};
use crate::testing::{bits, fingerprint, machines, noise, relative};

#[test]
fn rows_turn_by_their_position_on_every_path() {
    for (heads, dim, theta) in [(1, 2, 10_000.0), (3, 6, 500_000.0), (9, 64, 100_000.0)] {
        let positions = [0, 1, 5, 63, 64, 1000, 8191];
        let x = noise(1, positions.len() * heads * dim);
        let mut table = RopeTable::new(dim, theta);
        table.reserve(100);
        table.reserve(8192);
        let mut first = None;
        for cpu in machines() {
            let mut y = x.clone();
            rotate(&cpu, &table, &positions, Direction::Forward, &mut y);
            for ((got, x), position) in y.chunks(heads * dim).zip(x.chunks(heads * dim)).zip(positions) {
                let want: Vec<f64> = x.chunks(dim).flat_map(|head| reference::rotate(head, position, theta)).collect();
                assert!(relative(got, &want) < 1e-6 + f64::from(position) * 1e-7, "position {position}");
            }
            assert_eq!(first.get_or_insert_with(|| bits(&y)), &bits(&y));
            rotate(&cpu, &table, &positions, Direction::Backward, &mut y);
            let back: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            assert!(relative(&y, &back) < 1e-6, "the transpose of a rotation is its inverse");
        }
    }
}

#[test]
fn bits_are_the_committed_ones() {
    let mut table = RopeTable::new(64, 100_000.0);
    table.reserve(300);
    assert_eq!(fingerprint(&table.turns_for_test()), 0x0cc8_ca85_5467_1919);
}
