//! The chunks of a version's weights and their hashes.
use cohort_engine::{SharedRing, SlotImage};
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::node::Manifest;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a chunk. At the 0.8 GB/s of one QUIC connection 5 ms; a model of 540 MB has 130, enough for many hosts to give
/// each other something from the first moment.
pub const CHUNK: u32 = 4 << 20;
/// Bytes of a BLAKE3 hash.
const HASH: usize = 32;
/// Chunks whose hashes are told together: a part each hundredth of a second or so.
const PART: u32 = 8;
/// Chunks of a version: 4 TiB of weights.
const MOST: u64 = 1 << 20;

/// What lies in a slot under `version`, without hashes.
///
/// # Errors
/// A sentence: the slot holds something else.
pub fn unhashed(ring: &SharedRing, slot: u32, version: PolicyVersion, chunk_bytes: u32) -> Result<Manifest, String> {
    let SlotImage { digest, directory_bytes, value_bytes } = ring.image(slot, version.0).map_err(|e| e.to_string())?;
    let manifest = Manifest { version, digest, directory_bytes, value_bytes, chunk_bytes, hashes: Vec::new() };
    chunks(&manifest)?;
    Ok(manifest)
}

/// Hashes the chunks of a slot on all cores and tells the hashes in parts, each in order behind the one before: `tell(first
/// chunk, hashes)`. The last part is told when the slot has been found to be what it was.
///
/// # Errors
/// A sentence: the slot was written meanwhile, or cannot be read.
pub fn hash_in_parts(
    ring: &SharedRing,
    slot: u32,
    manifest: &Manifest,
    tell: &(impl Fn(u32, Vec<u8>) + Sync),
) -> Result<(), String> {
    let chunks = chunks(manifest)?;
    let (next, told, failure) = (AtomicU32::new(0), Mutex::new(Told::default()), Mutex::new(None));
    let work = || {
        let mut bytes = vec![0; manifest.chunk_bytes as usize];
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return;
            }
            let (at, len) = range(manifest, chunk);
            if let Err(error) = ring.read_image(slot, at, &mut bytes[..len]) {
                *lock(&failure) = Some(error.to_string());
                return;
            }
            let hash = *blake3::hash(&bytes[..len]).as_bytes();
            let mut told = lock(&told);
            told.ready.insert(chunk, hash);
            // The last part waits until all is known to be well.
            if told.run() >= PART && told.next + told.run() < chunks {
                let (first, hashes) = told.take();
                tell(first, hashes);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let Some(why) = lock(&failure).take() {
        return Err(why);
    }
    match ring.image(slot, manifest.version.0) {
        Ok(again) if again == image(manifest) => {
            let (first, hashes) = lock(&told).take();
            tell(first, hashes);
            Ok(())
        }
        Ok(_) => Err(format!("slot {slot} was written anew")),
        Err(error) => Err(error.to_string()),
    }
}

/// Hashes that are ready, of which those behind `next` in a row can be told.
#[derive(Default)]
struct Told {
    next: u32,
    ready: BTreeMap<u32, [u8; HASH]>,
}

impl Told {
    /// How many can be told.
    fn run(&self) -> u32 {
        let in_row = self.ready.keys().zip(self.next..).take_while(|(ready, next)| *ready == next);
        in_row.count() as u32
    }

    fn take(&mut self) -> (u32, Vec<u8>) {
        let (first, run) = (self.next, self.run());
        let later = self.ready.split_off(&(first + run));
        let hashes = std::mem::replace(&mut self.ready, later).into_values().flatten().collect();
        self.next += run;
        (first, hashes)
    }
}

/// Hashes what lies in a slot under `version`, on all cores.
///
/// # Errors
/// A sentence: the slot holds something else, or it changed meanwhile.
pub fn of_slot(ring: &SharedRing, slot: u32, version: PolicyVersion, chunk_bytes: u32) -> Result<Manifest, String> {
    let mut manifest = unhashed(ring, slot, version, chunk_bytes)?;
    let all = Mutex::new(Vec::new());
    hash_in_parts(ring, slot, &manifest, &|_, mut hashes| lock(&all).append(&mut hashes))?;
    manifest.hashes = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(manifest)
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

/// Checks a manifest that came from elsewhere, whose hashes may be those of the first chunks only.
///
/// # Errors
/// What does not hold.
pub fn check(manifest: &Manifest) -> Result<u32, String> {
    let chunks = chunks(manifest)?;
    if manifest.hashes.len() > chunks as usize * HASH || !manifest.hashes.len().is_multiple_of(HASH) {
        return Err(format!("{} bytes of hashes for {chunks} chunks", manifest.hashes.len()));
    }
    if manifest.chunk_bytes > CHUNK {
        return Err(format!("chunks of {} bytes, at most {CHUNK} are taken", manifest.chunk_bytes));
    }
    Ok(chunks)
}

/// How many chunks' hashes are known, from the first one on.
pub fn hashed(manifest: &Manifest) -> u32 {
    u32::try_from(manifest.hashes.len() / HASH).unwrap_or(u32::MAX)
}

/// Takes further hashes, as they came from elsewhere.
///
/// # Errors
/// They do not follow those that are known, or are too many.
pub fn learn(manifest: &mut Manifest, first: u32, hashes: &[u8]) -> Result<(), String> {
    let (known, chunks) = (hashed(manifest), chunks(manifest)?);
    let fits = hashes.len().is_multiple_of(HASH) && hashes.len() / HASH <= (chunks - known.min(chunks)) as usize;
    if first != known || !fits {
        return Err(format!("{} bytes of hashes from chunk {first} on, where {known} of {chunks} are known", hashes.len()));
    }
    manifest.hashes.extend_from_slice(hashes);
    Ok(())
}

/// Whether two manifests are of the same weights, as far as the hashes of both go.
pub fn agree(one: &Manifest, other: &Manifest) -> bool {
    let both = one.hashes.len().min(other.hashes.len());
    alike(one, other) && (one.version, one.digest) == (other.version, other.digest) && one.hashes[..both] == other.hashes[..both]
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
        let short = Manifest { hashes: manifest.hashes[1..].to_vec(), ..manifest.clone() };
        let long = Manifest { hashes: [manifest.hashes.clone(), vec![0; 32]].concat(), ..manifest.clone() };
        let endless = Manifest { value_bytes: u64::MAX, ..manifest.clone() };
        let none = Manifest { chunk_bytes: 0, ..manifest.clone() };
        let huge = Manifest { value_bytes: 1 << 50, ..manifest };
        assert!([short, long, endless, none, huge].iter().all(|m| check(m).is_err()));
    }

    #[test]
    fn parts_follow_each_other_and_the_last_comes_when_all_is_well() {
        let ring = SharedRing::create(1).unwrap();
        let data: Vec<f32> = (0..10_000u16).map(f32::from).collect();
        let weights = WeightSet([("w".to_owned(), Tensor { shape: vec![10_000], data })].into());
        ring.publish(0, 3, &weights).unwrap();
        let whole = of_slot(&ring, 0, PolicyVersion(3), 1000).unwrap();
        let bare = unhashed(&ring, 0, PolicyVersion(3), 1000).unwrap();
        let (put_together, parts) = (Mutex::new(bare.clone()), Mutex::new(Vec::new()));
        let tell = |first, hashes: Vec<u8>| {
            lock(&parts).push(hashes.len() / HASH);
            learn(&mut lock(&put_together), first, &hashes).unwrap();
        };
        hash_in_parts(&ring, 0, &bare, &tell).unwrap();
        let put_together = lock(&put_together).clone();
        assert_eq!(put_together, whole);
        assert!(agree(&bare, &whole) && check(&bare).is_ok() && hashed(&bare) == 0);
        let parts = lock(&parts).clone();
        assert!(parts.len() > 2 && parts.iter().all(|&part| part > 0), "{parts:?}");
        // Written while it is hashed: the last chunk's hash is never told.
        let told = Mutex::new(bare.clone());
        let outcome = hash_in_parts(&ring, 0, &bare, &|first, hashes: Vec<u8>| {
            learn(&mut lock(&told), first, &hashes).unwrap();
            ring.publish(0, 4, &weights).unwrap();
        });
        assert!(outcome.unwrap_err().contains("version 4") && hashed(&lock(&told)) < chunks(&bare).unwrap());
        // What came from elsewhere: a gap, a repetition, too many, half a hash.
        let mut partly = bare;
        learn(&mut partly, 0, &[1; 64]).unwrap();
        for (first, len) in [(3, 32), (0, 32), (2, 32 * 1000), (2, 33)] {
            assert!(learn(&mut partly, first, &vec![1; len]).is_err());
        }
        assert!(!agree(&partly, &whole));
    }
}
