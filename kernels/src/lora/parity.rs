//! Bits equal to the reference's on every path and for any number of threads.
use super::{Product, merge, reference};
use crate::linear::{pack, packed_len};
use crate::testing::{bits, machines, noise};

#[test]
fn merging_equals_the_reference_bit_for_bit() {
    for (out, inner, rank) in [(1, 1, 1), (48, 16, 3), (49, 33, 8), (130, 65, 20)] {
        let (w, a, b) = (noise(1, out * inner), noise(2, rank * inner), noise(3, out * rank));
        let mut want = w.clone();
        reference::merge(&mut want, &a, &b, (inner, rank), 0.37);
        for cpu in machines() {
            let packed = |w: &[f32]| {
                let mut packed = vec![0.0; packed_len(out, inner)];
                pack(&cpu, w, out, inner, &mut packed);
                packed
            };
            let mut merged = vec![f32::NAN; packed_len(out, inner)];
            merge(&cpu, &packed(&w), (out, inner), Product { a: &a, b: &b, rank, scale: 0.37 }, &mut merged);
            assert_eq!(bits(&merged), bits(&packed(&want)), "{} {out} x {inner}, rank {rank}", cpu.path());
        }
    }
}

#[test]
fn fresh_adapters_change_no_bit() {
    let cpu = crate::Cpu::new(2, 0);
    let frozen = noise(1, packed_len(50, 7));
    let mut merged = vec![0.0; frozen.len()];
    let product = Product { a: &noise(2, 14), b: &[0.0; 100], rank: 2, scale: 2.0 };
    merge(&cpu, &frozen, (50, 7), product, &mut merged);
    assert_eq!(bits(&merged), bits(&frozen));
}
