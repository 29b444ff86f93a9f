//! Bits equal to the reference's on every path and for any number of threads.
use super::{backward, forward, reference};
use crate::testing::{bits, machines, noise};

#[test]
fn both_directions_equal_the_reference_bit_for_bit() {
    for (rows, n) in [(1, 1), (3, 7), (40, 33), (17, 300)] {
        let (bias, y, dy) = (noise(1, n), noise(2, rows * n), noise(3, rows * n));
        let (mut want, mut sums) = (y.clone(), bias.clone());
        reference::forward(&bias, &mut want);
        reference::backward(&dy, &mut sums);
        for cpu in machines() {
            let mut got = y.clone();
            forward(&cpu, &bias, &mut got);
            assert_eq!(bits(&got), bits(&want), "{} {rows} x {n}", cpu.path());
            let mut got = bias.clone();
            backward(&cpu, &dy, &mut got);
            assert_eq!(bits(&got), bits(&sums), "gradient {} {rows} x {n}", cpu.path());
        }
    }
}
