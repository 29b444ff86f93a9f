//! Inputs and comparisons for the parity tests.
use crate::Cpu;
use crate::path::Path;

/// Values in about -1 to 1, from a small generator of its own.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..8).for_each(|_| {
        next();
    });
    (0..len).map(|_| next()).collect()
}

/// What equality of results means here.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// FNV-1a over the bits: a committed figure that every vendor and compiler must reproduce.
pub(crate) fn fingerprint(values: &[f32]) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    values.iter().flat_map(|x| x.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, step)
}

/// Every path of this machine, with 1 and with 3 threads.
pub(crate) fn machines() -> Vec<Cpu> {
    Path::available().into_iter().flat_map(|path| [1, 3].map(|threads| Cpu::with_path(path, threads, 0))).collect()
}

/// Largest difference over the largest magnitude.
pub(crate) fn relative(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
    got.iter().zip(want).fold(0.0, |m: f64, (a, b)| m.max((f64::from(*a) - b).abs())) / scale
}
