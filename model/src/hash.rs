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

    /// The fast digest of all tensors: see [`TensorDigest`] and [`set_digest`].
    #[must_use]
    pub fn digest(&self) -> u64 {
        set_digest(self.0.iter().map(|(name, tensor)| {
            let mut digest = TensorDigest::new(name, &tensor.shape);
            digest.values(&tensor.data);
            digest.finish()
        }))
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
/// Values that go into the lanes at a time.
const ROW: usize = 2 * LANES;
const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;
const START: u64 = 0x636f_686f_7274_0001;

/// A 64-bit digest of one tensor at the speed of memory, fed in parts of any size. Not cryptographic: it guards against
/// mistakes, not against people.
///
/// Sixteen lanes each take every sixteenth 64-bit word (two values): `lane = rotate(lane ^ word, 29) * PRIME`. Every step
/// is a bijection of the word for a given lane and of the lane for a given word, and so is the fold of the lanes:
/// two inputs that differ in one word (so in one flipped bit) always have different digests.
#[derive(Debug, Clone)]
pub struct TensorDigest {
    /// Of name and shape.
    state: u64,
    lanes: [u64; LANES],
    /// Values that do not fill the lanes yet.
    rest: [f32; ROW],
    /// Values so far.
    len: usize,
}

impl TensorDigest {
    /// Of a tensor without values yet.
    #[must_use]
    pub fn new(name: &str, shape: &[usize]) -> Self {
        let mut state = step(START, name.len() as u64);
        for byte in name.bytes() {
            state = step(state, u64::from(byte));
        }
        state = step(state, shape.len() as u64);
        for dim in shape {
            state = step(state, *dim as u64);
        }
        let lanes = std::array::from_fn(|i| PRIME.wrapping_mul(2 * i as u64 + 1));
        Self { state, lanes, rest: [0.0; ROW], len: 0 }
    }

    /// Takes the next values.
    pub fn values(&mut self, mut data: &[f32]) {
        let held = self.len % ROW;
        self.len += data.len();
        if held > 0 {
            let (now, later) = data.split_at(data.len().min(ROW - held));
            self.rest[held..held + now.len()].copy_from_slice(now);
            data = later;
            if held + now.len() < ROW {
                return;
            }
            let row = self.rest;
            self.row(&row);
        }
        let (rows, rest) = data.as_chunks::<ROW>();
        rows.iter().for_each(|row| self.row(row));
        self.rest[..rest.len()].copy_from_slice(rest);
    }

    #[inline]
    fn row(&mut self, row: &[f32; ROW]) {
        for (i, lane) in self.lanes.iter_mut().enumerate() {
            let word = u64::from(row[2 * i].to_bits()) | u64::from(row[2 * i + 1].to_bits()) << 32;
            *lane = step(*lane, word);
        }
    }

    /// The digest of all values so far.
    #[must_use]
    pub fn finish(&self) -> u64 {
        let state = step(self.state, self.len as u64);
        let state = self.lanes.iter().fold(state, |state, lane| step(state, *lane));
        let rest = &self.rest[..self.len % ROW];
        fold(rest.iter().fold(state, |state, value| step(state, u64::from(value.to_bits()))))
    }
}

/// The digest of a set from those of its tensors in ascending order of their names. Tensors may so be digested side by side.
#[must_use]
pub fn set_digest(tensors: impl IntoIterator<Item = u64>) -> u64 {
    fold(tensors.into_iter().fold(START, step))
}

const fn fold(state: u64) -> u64 {
    let h = (state ^ (state >> 32)).wrapping_mul(PRIME);
    h ^ (h >> 29)
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
        fn parts_of_any_size_make_the_same_digest(data in prop::collection::vec(any::<f32>(), 0..300), cuts in prop::collection::vec(0usize..300, 0..6)) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(data.len())).chain([0, data.len()]).collect();
            cuts.sort_unstable();
            let mut parts = TensorDigest::new("w", &[data.len()]);
            cuts.windows(2).for_each(|ends| parts.values(&data[ends[0]..ends[1]]));
            let whole = set(&[("w", &[data.len()], data)]);
            prop_assert_eq!(set_digest([parts.finish()]), whole.digest());
        }

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
