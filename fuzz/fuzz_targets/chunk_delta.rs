//! A chunk of weights as what changed: whatever bytes come are an error or lead to as many bytes as the chunk has.
#![no_main]
use cohort_cluster::agent::weights::delta;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[phase, len], delta)) = data.split_first_chunk() else { return };
    let mut base: Vec<u8> = (0..=len).map(|at| at.wrapping_mul(31)).collect();
    // Refused or not, it ends; what it leads to is checked by its hash.
    let _ = delta::apply(&mut base, usize::from(phase % 4), delta);
    assert_eq!(base.len(), usize::from(len) + 1);
});
