//! The weight ring of a host: a few reusable slots that hold canonical f32 weights under a policy version.
//!
//! Invariants
//! - **R1** `fetch` gives exactly what `publish` wrote under that version, or an error: a torn, foreign or half-written
//!   slot is recognised by its sequence number and its digest, never returned.
//! - **R2** one writer (the learner); any number of readers. Who may overwrite which slot is the coordinator's decision.
//! - **R3** a writer killed in the middle leaves a slot that readers refuse and the next `publish` repairs.
//!
//! [`LocalRing`] serves roles of one process. [`SharedRing`] is an anonymous file in memory (memfd) that the node agent
//! makes and its workers inherit. It is read and written by position rather than mapped: a fetch ends in owned tensors
//! anyway, and a page that shrinks or changes under a mapping would be a fault instead of an error value.
use crate::EngineError;
use cohort_model::{Tensor, WeightSet};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use thiserror::Error;

/// Why a slot could not be written or read.
#[derive(Debug, Error)]
pub enum RingError {
    /// There is no such slot.
    #[error("slot {slot} of a ring of {slots}")]
    NoSlot {
        /// Asked for.
        slot: u32,
        /// There are.
        slots: u32,
    },
    /// The slot holds something else, or nothing yet.
    #[error("slot {slot} holds {found}, version {want} was expected")]
    Version {
        /// The slot.
        slot: u32,
        /// "version 3", "nothing".
        found: String,
        /// Expected version.
        want: u64,
    },
    /// The slot is being written, or its writer died; it will be published again.
    #[error("slot {slot} is being written")]
    Torn {
        /// The slot.
        slot: u32,
    },
    /// The bytes are not what was published.
    #[error("slot {slot} is corrupt: {why}")]
    Corrupt {
        /// The slot.
        slot: u32,
        /// What does not hold.
        why: String,
    },
    /// The memory file failed.
    #[error("weight ring: {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl From<RingError> for EngineError {
    fn from(error: RingError) -> Self {
        match error {
            RingError::Io { .. } => Self::Device(error.to_string()),
            other => Self::Input(other.to_string()),
        }
    }
}

/// Slots of versioned weights.
pub trait WeightRing: Send + Sync + std::fmt::Debug {
    /// Overwrites a slot and gives the [`WeightSet::digest`] of what it holds now. `midway` is called once while the slot is
    /// half written: a place to die at, for tests of R3.
    fn publish_through(&self, slot: u32, version: u64, weights: &WeightSet, midway: &mut dyn FnMut()) -> Result<u64, RingError>;
    /// [`Self::publish_through`] without a stop.
    fn publish(&self, slot: u32, version: u64, weights: &WeightSet) -> Result<u64, RingError> {
        self.publish_through(slot, version, weights, &mut || {})
    }
    /// What `publish` wrote there under this version.
    fn fetch(&self, slot: u32, version: u64) -> Result<WeightSet, RingError>;
    /// Number of slots.
    fn slots(&self) -> u32;
}

/// Slots in this process's memory.
#[derive(Debug)]
pub struct LocalRing {
    slots: Vec<LocalSlot>,
}

/// Version, digest and weights.
type LocalSlot = Mutex<Option<(u64, u64, WeightSet)>>;

impl LocalRing {
    /// Empty slots.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self { slots: (0..slots).map(|_| Mutex::new(None)).collect() }
    }

    fn slot(&self, slot: u32) -> Result<&LocalSlot, RingError> {
        self.slots.get(slot as usize).ok_or(RingError::NoSlot { slot, slots: self.slots() })
    }
}

impl WeightRing for LocalRing {
    fn publish_through(&self, slot: u32, version: u64, weights: &WeightSet, midway: &mut dyn FnMut()) -> Result<u64, RingError> {
        let digest = weights.digest();
        let mut held = self.slot(slot)?.lock().unwrap_or_else(PoisonError::into_inner);
        *held = None;
        midway();
        *held = Some((version, digest, weights.clone()));
        Ok(digest)
    }

    fn fetch(&self, slot: u32, version: u64) -> Result<WeightSet, RingError> {
        match &*self.slot(slot)?.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((held, digest_then, weights)) if *held == version => {
                if weights.digest() != *digest_then {
                    return Err(RingError::Corrupt { slot, why: "its digest has changed".into() });
                }
                Ok(weights.clone())
            }
            Some((held, ..)) => Err(RingError::Version { slot, found: format!("version {held}"), want: version }),
            None => Err(RingError::Version { slot, found: "nothing".into(), want: version }),
        }
    }

    fn slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }
}

/// Slots in an anonymous memory file that the processes of a host share.
///
/// Layout: a page with `MAGIC | slots: u64 | slot bytes: u64` (bytes 0 until the first publish), then the slots. A slot is
/// a page with its header, a directory of tensors (name, shape), and their values, all little-endian.
#[derive(Debug)]
pub struct SharedRing {
    file: File,
    slots: u32,
}

const MAGIC: u64 = u64::from_le_bytes(*b"CohoRing");
const PAGE: u64 = 4096;
/// Words of a slot's header: sequence (odd while being written), version, digest, directory bytes, value bytes.
const HEADER_WORDS: usize = 5;
/// Bytes moved at a time.
const CHUNK: usize = 1 << 20;

impl SharedRing {
    /// A new ring whose descriptor children inherit. Takes memory at the first publish.
    pub fn create(slots: u32) -> Result<Self, RingError> {
        // Not close-on-exec: inheriting it is its purpose. Not shrinkable: a reader never runs past the end.
        let fd = rustix::fs::memfd_create("cohort-weights", rustix::fs::MemfdFlags::ALLOW_SEALING)
            .map_err(|e| RingError::Io { what: "cannot create the memory file", source: e.into() })?;
        rustix::fs::fcntl_add_seals(&fd, rustix::fs::SealFlags::SHRINK)
            .map_err(|e| RingError::Io { what: "cannot seal the memory file", source: e.into() })?;
        let ring = Self { file: File::from(fd), slots };
        ring.write_words(0, &[MAGIC, u64::from(slots), 0])?;
        Ok(ring)
    }

    /// The ring behind an inherited descriptor, or behind `/proc/PID/fd/N` of a process that has it.
    pub fn inherit(fd: RawFd) -> Result<Self, RingError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/self/fd/{fd}"))
            .map_err(|source| RingError::Io { what: "cannot open the inherited descriptor", source })?;
        let probe = Self { file, slots: 0 };
        let [magic, slots, _] = probe.read_words(0)?;
        let slots = u32::try_from(slots).ok().filter(|&n| magic == MAGIC && n > 0);
        let Some(slots) = slots else {
            return Err(RingError::Corrupt { slot: 0, why: format!("descriptor {fd} is not a weight ring") });
        };
        Ok(Self { file: probe.file, slots })
    }

    /// The descriptor that children inherit.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn slot_bytes(&self) -> Result<u64, RingError> {
        self.read_words::<3>(0).map(|[_, _, bytes]| bytes)
    }

    fn offset(&self, slot: u32, slot_bytes: u64) -> Result<u64, RingError> {
        if slot >= self.slots {
            return Err(RingError::NoSlot { slot, slots: self.slots });
        }
        Ok(PAGE + u64::from(slot) * slot_bytes)
    }

    fn read_words<const N: usize>(&self, at: u64) -> Result<[u64; N], RingError> {
        let mut bytes = vec![0; N * 8];
        self.read(at, &mut bytes)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        Ok(words)
    }

    fn write_words(&self, at: u64, words: &[u64]) -> Result<(), RingError> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.write(at, &bytes)
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), RingError> {
        self.file.read_exact_at(bytes, at).map_err(|source| RingError::Io { what: "cannot read", source })
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), RingError> {
        self.file.write_all_at(bytes, at).map_err(|source| RingError::Io { what: "cannot write", source })
    }

    /// Writes values from `at` on and gives the end.
    fn write_values(&self, mut at: u64, values: &[f32], buffer: &mut Vec<u8>) -> Result<u64, RingError> {
        for chunk in values.chunks(CHUNK / 4) {
            buffer.clear();
            buffer.extend(chunk.iter().flat_map(|v| v.to_le_bytes()));
            self.write(at, buffer)?;
            at += buffer.len() as u64;
        }
        Ok(at)
    }

    fn read_values(&self, at: u64, len: usize, buffer: &mut Vec<u8>) -> Result<Vec<f32>, RingError> {
        let mut values = Vec::with_capacity(len);
        while values.len() < len {
            let n = (len - values.len()).min(CHUNK / 4);
            buffer.resize(n * 4, 0);
            self.read(at + values.len() as u64 * 4, buffer)?;
            values.extend(buffer.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Ok(values)
    }

    /// The slot's size, decided by the first publish (all weights of a run have one size).
    fn reserve(&self, need: u64) -> Result<u64, RingError> {
        let need = need.next_multiple_of(PAGE);
        let have = self.slot_bytes()?;
        if have == 0 {
            self.file
                .set_len(PAGE + need * u64::from(self.slots))
                .map_err(|source| RingError::Io { what: "cannot size the memory file", source })?;
            self.write_words(16, &[need])?;
            return Ok(need);
        }
        if need > have {
            return Err(RingError::Corrupt { slot: 0, why: format!("weights of {need} bytes for slots of {have}") });
        }
        Ok(have)
    }
}

impl WeightRing for SharedRing {
    fn publish_through(&self, slot: u32, version: u64, weights: &WeightSet, midway: &mut dyn FnMut()) -> Result<u64, RingError> {
        let directory = encode_directory(weights);
        let values: u64 = weights.0.values().map(|t| t.data.len() as u64 * 4).sum();
        let at = self.offset(slot, self.reserve(PAGE + directory.len() as u64 + values)?)?;
        let [sequence] = self.read_words::<1>(at)?;
        // Odd while being written; an odd one left by a dead writer is simply passed over.
        let writing = (sequence | 1) + if sequence & 1 == 1 { 2 } else { 0 };
        self.write_words(at, &[writing])?;
        let digest = weights.digest();
        self.write_words(at + 8, &[version, digest, directory.len() as u64, values])?;
        self.write(at + PAGE, &directory)?;
        let mut end = at + PAGE + directory.len() as u64;
        let mut buffer = Vec::with_capacity(CHUNK);
        let half = weights.0.len() / 2;
        for (written, tensor) in weights.0.values().enumerate() {
            if written == half {
                midway();
            }
            end = self.write_values(end, &tensor.data, &mut buffer)?;
        }
        self.write_words(at, &[writing + 1])?;
        Ok(digest)
    }

    fn fetch(&self, slot: u32, version: u64) -> Result<WeightSet, RingError> {
        let corrupt = |why: &str| RingError::Corrupt { slot, why: why.into() };
        let slot_bytes = self.slot_bytes()?;
        let at = self.offset(slot, slot_bytes)?;
        if slot_bytes == 0 {
            return Err(RingError::Version { slot, found: "nothing".into(), want: version });
        }
        let header: [u64; HEADER_WORDS] = self.read_words(at)?;
        let [sequence, held, digest_then, directory_bytes, value_bytes] = header;
        if sequence & 1 == 1 {
            return Err(RingError::Torn { slot });
        }
        if sequence == 0 || held != version {
            let found = if sequence == 0 { "nothing".into() } else { format!("version {held}") };
            return Err(RingError::Version { slot, found, want: version });
        }
        let body = directory_bytes.checked_add(value_bytes).and_then(|n| n.checked_add(PAGE));
        if body.is_none_or(|n| n > slot_bytes) {
            return Err(corrupt("it claims more bytes than it has"));
        }
        let mut directory = vec![0; usize::try_from(directory_bytes).map_err(|_| corrupt("too long"))?];
        self.read(at + PAGE, &mut directory)?;
        let shapes = decode_directory(&directory).ok_or_else(|| corrupt("its directory cannot be read"))?;
        let total = shapes.iter().try_fold(0u64, |sum, (_, shape)| {
            shape.iter().try_fold(4u64, |n, &d| n.checked_mul(d as u64)).and_then(|n| n.checked_add(sum))
        });
        if total != Some(value_bytes) {
            return Err(corrupt("its directory does not match its length"));
        }
        let mut weights = WeightSet(BTreeMap::new());
        let (mut from, mut buffer) = (at + PAGE + directory_bytes, Vec::with_capacity(CHUNK));
        for (name, shape) in shapes {
            let data = self.read_values(from, shape.iter().product(), &mut buffer)?;
            from += data.len() as u64 * 4;
            weights.0.insert(name, Tensor { shape, data });
        }
        if self.read_words::<HEADER_WORDS>(at)? != header {
            return Err(RingError::Torn { slot });
        }
        if weights.digest() != digest_then {
            return Err(corrupt("its bytes do not have its digest"));
        }
        Ok(weights)
    }

    fn slots(&self) -> u32 {
        self.slots
    }
}

/// `count, {name length, name, rank, dimensions..}..`, every number a u64.
fn encode_directory(weights: &WeightSet) -> Vec<u8> {
    let mut out = Vec::new();
    let word = |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&(n as u64).to_le_bytes());
    word(&mut out, weights.0.len());
    for (name, tensor) in &weights.0 {
        word(&mut out, name.len());
        out.extend_from_slice(name.as_bytes());
        word(&mut out, tensor.shape.len());
        for &n in &tensor.shape {
            word(&mut out, n);
        }
    }
    out
}

fn decode_directory(mut bytes: &[u8]) -> Option<Vec<(String, Vec<usize>)>> {
    fn word(bytes: &mut &[u8]) -> Option<usize> {
        let (head, rest) = bytes.split_first_chunk::<8>()?;
        *bytes = rest;
        usize::try_from(u64::from_le_bytes(*head)).ok()
    }
    let mut out = Vec::new();
    for _ in 0..word(&mut bytes)? {
        let len = word(&mut bytes)?;
        let (name, rest) = bytes.split_at_checked(len)?;
        bytes = rest;
        let rank = word(&mut bytes)?;
        let shape = (0..rank).map(|_| word(&mut bytes)).collect::<Option<Vec<_>>>()?;
        out.push((String::from_utf8(name.to_vec()).ok()?, shape));
    }
    bytes.is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(seed: u32) -> WeightSet {
        let tensor = |n: usize, k: u32| Tensor {
            shape: vec![n, 3],
            data: (0..n * 3).map(|i| f32::from_bits(0x3f00_0000 + seed * 7919 + k * 31 + i as u32)).collect(),
        };
        WeightSet([("a".to_owned(), tensor(5, 1)), ("b.weight".to_owned(), tensor(300_001, 2))].into())
    }

    /// R3, in a process that dies at the place where the learner's crash point is.
    #[test]
    fn a_writer_that_ends_midway_leaves_no_weights_and_the_next_one_repairs() {
        let rings: [Box<dyn WeightRing>; 2] = [Box::new(LocalRing::new(2)), Box::new(SharedRing::create(2).unwrap())];
        for ring in &rings {
            ring.publish(1, 4, &weights(4)).unwrap();
            let mut die = || panic!("killed");
            let died =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ring.publish_through(1, 5, &weights(5), &mut die)));
            assert!(died.is_err(), "it passes the middle");
            for version in [4, 5] {
                assert!(matches!(ring.fetch(1, version), Err(RingError::Torn { .. } | RingError::Version { .. })), "{ring:?}");
            }
            let digest = ring.publish(1, 5, &weights(5)).unwrap();
            assert_eq!(ring.fetch(1, 5).unwrap().digest(), digest);
        }
    }

    fn round_trip(ring: &dyn WeightRing) {
        assert!(matches!(ring.fetch(0, 1), Err(RingError::Version { .. })));
        let (one, two) = (weights(1), weights(2));
        assert_eq!(ring.publish(0, 1, &one).unwrap(), one.digest());
        assert_eq!(ring.publish(1, 2, &two).unwrap(), two.digest());
        assert_eq!(ring.fetch(0, 1).unwrap(), one);
        assert_eq!(ring.fetch(1, 2).unwrap(), two);
        assert!(matches!(ring.fetch(0, 2), Err(RingError::Version { .. })));
        assert!(matches!(ring.fetch(2, 2), Err(RingError::NoSlot { slot: 2, slots: 2 })));
        ring.publish(0, 3, &two).unwrap();
        assert_eq!(ring.fetch(0, 3).unwrap(), two);
    }

    #[test]
    fn slots_give_back_what_was_published() {
        round_trip(&LocalRing::new(2));
        round_trip(&SharedRing::create(2).unwrap());
    }

    #[test]
    fn another_process_s_view_sees_the_same_and_refuses_damage() {
        let writer = SharedRing::create(2).unwrap();
        let reader = SharedRing::inherit(writer.fd()).unwrap();
        assert_eq!(reader.slots(), 2);
        assert!(matches!(reader.fetch(1, 5), Err(RingError::Version { .. })));
        writer.publish(1, 5, &weights(1)).unwrap();
        assert_eq!(reader.fetch(1, 5).unwrap(), weights(1));
        let at = writer.offset(1, writer.slot_bytes().unwrap()).unwrap();
        let header: [u64; HEADER_WORDS] = writer.read_words(at).unwrap();
        // A writer that died in the middle, then its successor.
        writer.write_words(at, &[header[0] + 1]).unwrap();
        assert!(matches!(reader.fetch(1, 5), Err(RingError::Torn { slot: 1 })));
        writer.publish(1, 5, &weights(3)).unwrap();
        assert_eq!(reader.fetch(1, 5).unwrap(), weights(3));
        // One flipped bit of a value, a directory that lies.
        writer.write(at + PAGE + header[3] + 4000, &[0xff]).unwrap();
        assert!(matches!(reader.fetch(1, 5), Err(RingError::Corrupt { .. })));
        writer.publish(1, 5, &weights(3)).unwrap();
        writer.write_words(at + PAGE, &[u64::MAX]).unwrap();
        assert!(matches!(reader.fetch(1, 5), Err(RingError::Corrupt { .. })));
        writer.write_words(at + 24, &[u64::MAX, u64::MAX]).unwrap();
        assert!(matches!(reader.fetch(1, 5), Err(RingError::Corrupt { .. })));
    }

    #[test]
    fn a_foreign_descriptor_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(SharedRing::inherit(file.as_raw_fd()).is_err());
        assert!(SharedRing::inherit(1_000_000).is_err());
    }

    #[test]
    fn concurrent_readers_see_a_whole_version_or_an_error() {
        let writer = SharedRing::create(1).unwrap();
        let (even, odd) = (weights(2), weights(3));
        writer.publish(0, 0, &even).unwrap();
        let fd = writer.fd();
        std::thread::scope(|scope| {
            let readers = (0..2).map(|_| {
                scope.spawn(|| {
                    let ring = SharedRing::inherit(fd).unwrap();
                    let mut version = 0;
                    while version < 20 {
                        match ring.fetch(0, version) {
                            Ok(got) => {
                                assert!(got == if version % 2 == 0 { even.clone() } else { odd.clone() });
                                version += 1;
                            }
                            Err(RingError::Version { found, .. }) => {
                                version = version.max(found.trim_start_matches("version ").parse().unwrap());
                            }
                            Err(RingError::Torn { .. } | RingError::Corrupt { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                })
            });
            let readers: Vec<_> = readers.collect();
            for version in 1..=20 {
                writer.publish(0, version, if version % 2 == 0 { &even } else { &odd }).unwrap();
            }
            readers.into_iter().for_each(|r| r.join().unwrap());
        });
    }
}
