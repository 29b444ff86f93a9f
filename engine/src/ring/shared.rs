//! Slots in an anonymous file in memory (memfd) that the node agent makes and its workers inherit.
//!
//! It is read and written by position rather than mapped: a fetch ends in owned tensors anyway, and a page that shrinks or
//! changes under a mapping would be a fault instead of an error value.
use super::{RingError, WeightRing};
use crate::WeightSource;
use cohort_model::spec::TensorSpec;
use cohort_model::{Tensor, WeightSet};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// Slots in an anonymous memory file that the processes of a host share.
///
/// Layout: a page with `MAGIC | slots: u64 | slot bytes: u64` (bytes 0 until the first publish), then the slots. A slot is
/// a page with its header, a directory of tensors (name, shape), all little-endian, and their values as this host has them in memory.
#[derive(Debug)]
pub struct SharedRing {
    file: File,
    slots: u32,
}

const MAGIC: u64 = u64::from_le_bytes(*b"CohoRing");
pub(super) const PAGE: u64 = 4096;
/// Words of a slot's header: sequence (odd while being written), version, digest, directory bytes, value bytes.
pub(super) const HEADER_WORDS: usize = 5;

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

    pub(super) fn slot_bytes(&self) -> Result<u64, RingError> {
        self.read_words::<3>(0).map(|[_, _, bytes]| bytes)
    }

    pub(super) fn offset(&self, slot: u32, slot_bytes: u64) -> Result<u64, RingError> {
        if slot >= self.slots {
            return Err(RingError::NoSlot { slot, slots: self.slots });
        }
        Ok(PAGE + u64::from(slot) * slot_bytes)
    }

    pub(super) fn read_words<const N: usize>(&self, at: u64) -> Result<[u64; N], RingError> {
        let mut bytes = vec![0; N * 8];
        self.read(at, &mut bytes)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        Ok(words)
    }

    pub(super) fn write_words(&self, at: u64, words: &[u64]) -> Result<(), RingError> {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.write(at, &bytes)
    }

    pub(super) fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), RingError> {
        self.file.read_exact_at(bytes, at).map_err(|source| RingError::Io { what: "cannot read", source })
    }

    /// As [`Self::read`], into memory that nothing wrote before.
    pub(super) fn read_bytes(&self, at: u64, len: usize) -> Result<Vec<u8>, RingError> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let from = at + bytes.len() as u64;
            let read = rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut bytes), from);
            match read.map_err(std::io::Error::from) {
                Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
                read => read.map(drop),
            }
            .map_err(|source| RingError::Io { what: "cannot read", source })?;
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), RingError> {
        self.file.write_all_at(bytes, at).map_err(|source| RingError::Io { what: "cannot write", source })
    }

    /// The slot's size, decided by the first publish (all weights of a run have one size).
    pub(super) fn reserve(&self, need: u64) -> Result<u64, RingError> {
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
    fn publish_through(
        &self,
        slot: u32,
        version: u64,
        weights: &dyn WeightSource,
        midway: &mut dyn FnMut(),
    ) -> Result<u64, RingError> {
        let tensors = weights.tensors();
        let directory = encode_directory(&tensors);
        let mut values = 0;
        let mut places = HashMap::with_capacity(tensors.len());
        for tensor in &tensors {
            places.insert(tensor.name.as_str(), values);
            values += 4 * tensor.shape.iter().product::<usize>() as u64;
        }
        let at = self.offset(slot, self.reserve(PAGE + directory.len() as u64 + values)?)?;
        let [sequence] = self.read_words::<1>(at)?;
        let writing = writing(sequence);
        self.write_words(at, &[writing])?;
        let digest = weights.digest();
        self.write_words(at + 8, &[version, digest, directory.len() as u64, values])?;
        self.write(at + PAGE, &directory)?;
        midway();
        let body = at + PAGE + directory.len() as u64;
        let failure = Mutex::new(None);
        let taken = weights.each_part(&|part| {
            let Some(place) = places.get(part.name) else { return };
            if let Err(error) = self.write(body + place + 4 * part.start as u64, bytemuck::cast_slice(part.values)) {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        });
        taken.map_err(|source| RingError::Source { slot, source })?;
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
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
        let mut from = at + PAGE + directory_bytes;
        for (name, shape) in shapes {
            let mut data = vec![0.0f32; shape.iter().product()];
            self.read(from, bytemuck::cast_slice_mut(&mut data))?;
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

/// The sequence number of a slot that is being written: odd; an odd one left by a dead writer is simply passed over.
pub(super) fn writing(sequence: u64) -> u64 {
    (sequence | 1) + if sequence & 1 == 1 { 2 } else { 0 }
}

/// `count, {name length, name, rank, dimensions..}..`, every number a u64.
fn encode_directory(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut out = Vec::new();
    let word = |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&(n as u64).to_le_bytes());
    word(&mut out, tensors.len());
    for tensor in tensors {
        word(&mut out, tensor.name.len());
        out.extend_from_slice(tensor.name.as_bytes());
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
