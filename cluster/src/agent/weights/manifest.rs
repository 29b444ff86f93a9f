//! The chunks of a version's weights and their hashes.
use cohort_engine::{SharedRing, SlotImage};
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::node::Manifest;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a chunk. At the 0.8 GB/s of one QUIC connection 5 ms; a model of 540 MB has 130, enough for many hosts to give
/// each other something from the first moment.
pub const CHUNK: u32 = 4 << 20;
/// Bytes of a BLAKE3 hash.
const HASH: usize = 32;
/// Chunks of a version: 4 TiB of weights.
const MOST: u64 = 1 << 20;

/// Hashes what lies in a slot under `version`, on all cores.
///
/// # Errors
/// A sentence: the slot holds something else, or it changed meanwhile.
pub fn of_slot(ring: &SharedRing, slot: u32, version: PolicyVersion, chunk_bytes: u32) -> Result<Manifest, String> {
    let image = ring.image(slot, version.0).map_err(|e| e.to_string())?;
    let mut manifest = Manifest {
        version,
        digest: image.digest,
        directory_bytes: image.directory_bytes,
        value_bytes: image.value_bytes,
        chunk_bytes,
        hashes: Vec::new(),
    };
    let chunks = chunks(&manifest)?;
    let (next, hashes, failure) = (AtomicU32::new(0), Mutex::new(vec![0u8; chunks as usize * HASH]), Mutex::new(None));
    let work = || {
        let mut bytes = vec![0; chunk_bytes as usize];
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return;
            }
            let (at, len) = range(&manifest, chunk);
            if let Err(error) = ring.read_image(slot, at, &mut bytes[..len]) {
                *lock(&failure) = Some(error.to_string());
                return;
            }
            let hash = blake3::hash(&bytes[..len]);
            lock(&hashes)[chunk as usize * HASH..][..HASH].copy_from_slice(hash.as_bytes());
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let Some(why) = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(why);
    }
    manifest.hashes = hashes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    match ring.image(slot, version.0) {
        Ok(again) if again == image => Ok(manifest),
        Ok(_) => Err(format!("slot {slot} was written anew")),
        Err(error) => Err(error.to_string()),
    }
}

/// How many chunks there are.
///
/// # Errors
/// Lengths that are none.
pub fn chunks(manifest: &Manifest) -> Result<u32, String> {
    let bytes = image(manifest).bytes().ok_or("its lengths add up to no number")?;
    let chunks = bytes.div_ceil(u64::from(manifest.chunk_bytes.max(1)));
    match u32::try_from(chunks) {
        Ok(n) if manifest.chunk_bytes > 0 && chunks <= MOST => Ok(n),
        _ => Err(format!("{bytes} bytes in chunks of {}", manifest.chunk_bytes)),
    }
}

/// Checks a manifest that came from elsewhere.
///
/// # Errors
/// What does not hold.
pub fn check(manifest: &Manifest) -> Result<u32, String> {
    let chunks = chunks(manifest)?;
    if manifest.hashes.len() != chunks as usize * HASH {
        return Err(format!("{} bytes of hashes for {chunks} chunks", manifest.hashes.len()));
    }
    if manifest.chunk_bytes > CHUNK {
        return Err(format!("chunks of {} bytes, at most {CHUNK} are taken", manifest.chunk_bytes));
    }
    Ok(chunks)
}

/// Place and length of a chunk. `chunk` is one of [`chunks`].
pub fn range(manifest: &Manifest, chunk: u32) -> (u64, usize) {
    let at = u64::from(chunk) * u64::from(manifest.chunk_bytes);
    let left = image(manifest).bytes().unwrap_or(0).saturating_sub(at);
    (at, usize::try_from(left.min(u64::from(manifest.chunk_bytes))).unwrap_or(0))
}

/// A chunk's hash; `None` where there is no such chunk.
pub fn hash(manifest: &Manifest, chunk: u32) -> Option<[u8; HASH]> {
    manifest.hashes.get(chunk as usize * HASH..)?.first_chunk().copied()
}

/// Whether bytes are the chunk's (W1).
pub fn fits(manifest: &Manifest, chunk: u32, bytes: &[u8]) -> bool {
    let same = |hash: [u8; HASH]| *blake3::hash(bytes).as_bytes() == hash || planted!(ChunkUnchecked);
    bytes.len() == range(manifest, chunk).1 && hash(manifest, chunk).is_some_and(same)
}

/// Where in a chunk the first 32-bit word of the values begins, below 4.
pub fn phase(manifest: &Manifest, chunk: u32) -> usize {
    let (at, values) = (range(manifest, chunk).0 % 4, manifest.directory_bytes % 4);
    ((values + 4 - at) % 4) as usize
}

/// Whether the chunks of two versions cover the same places.
pub fn alike(one: &Manifest, other: &Manifest) -> bool {
    let lengths = |m: &Manifest| (m.directory_bytes, m.value_bytes, m.chunk_bytes);
    lengths(one) == lengths(other)
}

/// What the ring must hold.
pub fn image(manifest: &Manifest) -> SlotImage {
    SlotImage { digest: manifest.digest, directory_bytes: manifest.directory_bytes, value_bytes: manifest.value_bytes }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_engine::WeightRing;
    use cohort_model::{Tensor, WeightSet};

    #[test]
    fn every_chunk_has_its_hash_and_nothing_else_fits() {
        let ring = SharedRing::create(2).unwrap();
        let data: Vec<f32> = (0..10_000u16).map(f32::from).collect();
        let weights = WeightSet([("w".to_owned(), Tensor { shape: vec![100, 100], data })].into());
        ring.publish(1, 3, &weights).unwrap();
        let manifest = of_slot(&ring, 1, PolicyVersion(3), 1000).unwrap();
        assert!(of_slot(&ring, 1, PolicyVersion(4), 1000).unwrap_err().contains("version 3"));
        let chunks = check(&manifest).unwrap();
        assert_eq!(u64::from(chunks), image(&manifest).bytes().unwrap().div_ceil(1000));
        for chunk in 0..chunks {
            let (at, len) = range(&manifest, chunk);
            let mut bytes = vec![0; len];
            ring.read_image(1, at, &mut bytes).unwrap();
            assert!(fits(&manifest, chunk, &bytes));
            assert!(!fits(&manifest, chunk + 1, &bytes));
            assert!(!fits(&manifest, chunk, &bytes[1..]));
            bytes[len / 2] ^= 1;
            assert!(!fits(&manifest, chunk, &bytes));
            let first = at + phase(&manifest, chunk) as u64;
            assert_eq!(first % 4, manifest.directory_bytes % 4, "words lie where the values do");
        }
        assert_eq!(hash(&manifest, chunks), None);
        let short = Manifest { hashes: manifest.hashes[32..].to_vec(), ..manifest.clone() };
        let endless = Manifest { value_bytes: u64::MAX, ..manifest.clone() };
        let none = Manifest { chunk_bytes: 0, ..manifest.clone() };
        let huge = Manifest { value_bytes: 1 << 50, ..manifest };
        assert!([short, endless, none, huge].iter().all(|m| check(m).is_err()));
    }
}
