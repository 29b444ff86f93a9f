//! Two digests of a [`WeightSet`]: SHA-256 for records, and a fast one for "are these the same weights".
//!
//! The byte stream under SHA-256 is, for every tensor in ascending byte order of its name:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | length of the name, u64 little-endian |
//! | n | the name, UTF-8 |
//! | 8 + 3 | length of the dtype's name (3, u64 little-endian), `F32` |
//! | 8 | number of dimensions, u64 little-endian |
//! | 8 each | dimensions, u64 little-endian |
//! | 8 | length of the data, u64 little-endian |
//! | 4 each | values, IEEE single precision, little-endian, row-major |
//!
//! Every field has a length before it, so different sets have different streams.
use crate::WeightSet;
use sha2::{Digest as _, Sha256};

/// Values whose bytes are put together before they are hashed.
const CHUNK: usize = 4096;

impl WeightSet {
    /// SHA-256 over names, shapes, dtype and little-endian bytes of all tensors sorted by name, as 64 hex digits.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hasher = Sha256::new();
        let mut bytes = vec![0u8; CHUNK * 4];
        for (name, tensor) in &self.0 {
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(3u64.to_le_bytes());
            hasher.update(b"F32");
            hasher.update((tensor.shape.len() as u64).to_le_bytes());
            for dim in &tensor.shape {
                hasher.update((*dim as u64).to_le_bytes());
            }
            hasher.update((tensor.data.len() as u64 * 4).to_le_bytes());
            for values in tensor.data.chunks(CHUNK) {
                for (out, value) in bytes.chunks_exact_mut(4).zip(values) {
                    out.copy_from_slice(&value.to_le_bytes());
                }
                hasher.update(&bytes[..values.len() * 4]);
            }
        }
        hex(&hasher.finalize())
    }

    /// The fast digest of all tensors in name order: see [`FastDigest`].
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = FastDigest::new();
        for (name, tensor) in &self.0 {
            digest.tensor(name, &tensor.shape, &tensor.data);
        }
        digest.finish()
    }
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

const LANES: usize = 16;
const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;

/// A 64-bit digest of tensors at the speed of memory. Not cryptographic: it guards against mistakes, not against people.
///
/// Sixteen lanes each take every sixteenth 64-bit word (two values): `lane = rotate(lane ^ word, 29) * PRIME`. Every step
/// is a bijection of the word for a given lane and of the lane for a given word, and so is the fold of the lanes:
/// two inputs that differ in one word (so in one flipped bit) always have different digests.
#[derive(Debug, Clone)]
pub struct FastDigest {
    state: u64,
}

impl Default for FastDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl FastDigest {
    /// The digest of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: 0x636f_686f_7274_0001 }
    }

    /// Takes one tensor. The order of calls matters.
    pub fn tensor(&mut self, name: &str, shape: &[usize], data: &[f32]) {
        self.word(name.len() as u64);
        for byte in name.bytes() {
            self.word(u64::from(byte));
        }
        self.word(shape.len() as u64);
        for dim in shape {
            self.word(*dim as u64);
        }
        self.values(data);
    }

    /// Takes values without a name.
    pub fn values(&mut self, data: &[f32]) {
        self.word(data.len() as u64);
        let mut lanes: [u64; LANES] = std::array::from_fn(|i| PRIME.wrapping_mul(2 * i as u64 + 1));
        let (rows, rest) = data.as_chunks::<{ 2 * LANES }>();
        for row in rows {
            for (i, lane) in lanes.iter_mut().enumerate() {
                let word = u64::from(row[2 * i].to_bits()) | u64::from(row[2 * i + 1].to_bits()) << 32;
                *lane = step(*lane, word);
            }
        }
        for lane in lanes {
            self.word(lane);
        }
        for value in rest {
            self.word(u64::from(value.to_bits()));
        }
    }

    /// The digest so far.
    #[must_use]
    pub const fn finish(&self) -> u64 {
        let mut h = self.state;
        h ^= h >> 32;
        h = h.wrapping_mul(PRIME);
        h ^ (h >> 29)
    }

    fn word(&mut self, word: u64) {
        self.state = step(self.state, word);
    }
}

#[inline]
const fn step(lane: u64, word: u64) -> u64 {
    (lane ^ word).rotate_left(29).wrapping_mul(PRIME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tensor;
    use proptest::prelude::*;

    fn set(entries: &[(&str, &[usize], Vec<f32>)]) -> WeightSet {
        WeightSet(entries.iter().map(|(n, s, d)| ((*n).to_owned(), Tensor { shape: s.to_vec(), data: d.clone() })).collect())
    }

    #[test]
    fn sha256_is_over_the_documented_stream() {
        let weights = set(&[("b", &[2], vec![1.0, -2.0]), ("a.w", &[1, 1], vec![0.5])]);
        let mut stream = Vec::new();
        for (name, dims, values) in [("a.w", vec![1u64, 1], vec![0.5f32]), ("b", vec![2], vec![1.0, -2.0])] {
            stream.extend((name.len() as u64).to_le_bytes());
            stream.extend(name.bytes());
            stream.extend(3u64.to_le_bytes());
            stream.extend(b"F32");
            stream.extend((dims.len() as u64).to_le_bytes());
            dims.iter().for_each(|d| stream.extend(d.to_le_bytes()));
            stream.extend((values.len() as u64 * 4).to_le_bytes());
            values.iter().for_each(|v| stream.extend(v.to_le_bytes()));
        }
        assert_eq!(weights.sha256(), hex(&Sha256::digest(&stream)));
        assert_eq!(weights.sha256().len(), 64);
    }

    #[test]
    fn shape_and_name_are_part_of_both_digests() {
        let data = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let base = set(&[("a", &[2, 3], data.clone())]);
        for other in [set(&[("a", &[3, 2], data.clone())]), set(&[("b", &[2, 3], data.clone())])] {
            assert_ne!(base.digest(), other.digest());
            assert_ne!(base.sha256(), other.sha256());
        }
    }

    proptest! {
        #[test]
        fn one_flipped_bit_always_shows(data in prop::collection::vec(any::<u32>(), 1..200), at in any::<prop::sample::Index>(), bit in 0u32..32) {
            let values: Vec<f32> = data.iter().map(|b| f32::from_bits(*b)).collect();
            let mut flipped = values.clone();
            let i = at.index(values.len());
            flipped[i] = f32::from_bits(values[i].to_bits() ^ (1 << bit));
            let (a, b) = (set(&[("w", &[values.len()], values)]), set(&[("w", &[flipped.len()], flipped)]));
            prop_assert_ne!(a.digest(), b.digest());
            prop_assert_ne!(a.sha256(), b.sha256());
        }
    }
}
