//! Equal bits with the definition for every thread count, repeated tokens included.
use super::{gather, gather_add, reference, scatter_add};
use crate::linear::{pack, packed_len, unpack};
use crate::testing::{bits, machines, noise};

#[test]
fn both_directions_equal_the_definition() {
    for (vocab, hidden, rows) in [(1, 1, 1), (50, 7, 13), (130, 150, 70)] {
        let w = noise(1, vocab * hidden);
        let dx = noise(2, rows * hidden);
        let tokens: Vec<u32> = (0..rows).map(|i| ((i * i * 7) % vocab) as u32).collect();
        for cpu in machines() {
            let mut packed = vec![0.0; packed_len(vocab, hidden)];
            pack(&cpu, &w, vocab, hidden, &mut packed);
            let mut x = vec![0.0; rows * hidden];
            gather(&cpu, packed[..].into(), vocab, hidden, &tokens, &mut x);
            assert_eq!(x, reference::gather(&w, hidden, &tokens));
            gather_add(&cpu, packed[..].into(), vocab, hidden, &tokens, &mut x);
            let twice: Vec<f32> = reference::gather(&w, hidden, &tokens).iter().map(|w| w + w).collect();
            assert_eq!(x, twice);
            let mut want = w.clone();
            reference::scatter_add(&mut want, hidden, &tokens, &dx);
            scatter_add(&cpu, &mut packed, vocab, hidden, &tokens, &dx);
            let mut got = vec![0.0; vocab * hidden];
            unpack(&cpu, &packed, vocab, hidden, &mut got);
            assert_eq!(bits(&got), bits(&want));
        }
    }
}
