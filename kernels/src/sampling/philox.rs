//! Philox4x32-10 (Salmon et al., SC 2011): ten rounds of multiply and xor turn a key and a counter into 128 bits.

/// What a random number is for: its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Draw {
    /// Group of the run.
    pub group: u64,
    /// Sample of the group.
    pub sample: u16,
    /// Token position, or whatever counts the draws of one purpose.
    pub position: u32,
    /// Keeps the draws of one position apart.
    pub purpose: u16,
}

/// A number in (0, 1), never 0 or 1: the middle of one of 2^52 equal intervals.
#[must_use]
pub fn uniform(seed: u64, draw: Draw) -> f64 {
    let counter =
        [draw.group as u32, (draw.group >> 32) as u32, draw.position, u32::from(draw.sample) | u32::from(draw.purpose) << 16];
    let [a, b, ..] = philox([seed as u32, (seed >> 32) as u32], counter);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 12;
    (bits as f64 + 0.5) * (1.0 / (1u64 << 52) as f64)
}

/// A key for the draws of one use of a sequence, from 128 bits that name it.
#[must_use]
pub fn key(seed: u64, name: [u32; 4]) -> u64 {
    let [a, b, ..] = philox([seed as u32, (seed >> 32) as u32], name);
    u64::from(a) << 32 | u64::from(b)
}

/// One block of Philox4x32-10.
pub(crate) fn philox(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
        }
        let product = |factor: u32, value: u32| {
            let wide = u64::from(factor) * u64::from(value);
            ((wide >> 32) as u32, wide as u32)
        };
        let (high0, low0) = product(0xd251_1f53, counter[0]);
        let (high1, low1) = product(0xcd9e_8d57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
    }
    counter
}
