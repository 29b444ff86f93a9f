//! Values between two ranks of one host: two rings of pieces in an anonymous memory file, one for each way. The line carries
//! no more than "piece n is there".
//!
//! Invariants
//! - **G1** a file belongs to one membership: the lead makes one for each follower that joins, so that a rank that was given up
//!   and moves once more writes where nobody reads.
//! - **G2** a file is opened only where both ends see the same processes (boot id and process namespace), and used only if it
//!   begins with its mark; else values travel over the line.
//! - **G3** no end writes a piece before the other has read the one that lay there: who sends is at most as many pieces ahead
//!   as a ring holds.
use super::stream::{AHEAD, PIECE};
use cohort_protocol::messages::ranks::RankMemory;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

/// The mark, and nothing else.
const HEADER: u64 = 4096;
const PIECE_BYTES: usize = 4 * PIECE;
const RING: u64 = (AHEAD * PIECE_BYTES) as u64;

/// Files made by this process.
static MADE: AtomicU64 = AtomicU64::new(0);

/// One end of such a file.
pub struct Exchange {
    file: File,
    mark: u64,
    /// Where this end writes, and where the other does.
    own: u64,
    other: u64,
}

impl Exchange {
    /// The lead's end. Errors: those of the system, which may refuse such files.
    pub fn create() -> io::Result<Self> {
        let file = File::from(memfd_create("cohort-ranks", MemfdFlags::CLOEXEC)?);
        let mark = u64::from(std::process::id()) << 32 | MADE.fetch_add(1, Ordering::Relaxed);
        file.set_len(HEADER + 2 * RING)?;
        file.write_all_at(&mark.to_le_bytes(), 0)?;
        Ok(Self { file, mark, own: HEADER, other: HEADER + RING })
    }

    /// What the follower needs to open its end.
    pub fn offer(&self) -> io::Result<RankMemory> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        Ok(RankMemory { host: host()?, path, mark: self.mark })
    }

    /// The follower's end, where it is on the lead's host (G2).
    #[must_use]
    pub fn open(offer: &RankMemory) -> Option<Self> {
        if host().ok().as_deref() != Some(&offer.host) {
            return None;
        }
        let file = OpenOptions::new().read(true).write(true).open(&offer.path).ok()?;
        let mut mark = [0; 8];
        file.read_exact_at(&mut mark, 0).ok()?;
        let mark = u64::from_le_bytes(mark);
        (mark == offer.mark).then_some(Self { file, mark, own: HEADER + RING, other: HEADER })
    }

    /// Puts piece `index` of an operation, at most `PIECE` values, where the other end finds it.
    pub fn put(&self, index: usize, values: &[f32]) -> io::Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.file.write_all_at(&bytes, self.own + place(index))
    }

    /// Takes piece `index` that the other end has put.
    pub fn take(&self, index: usize, values: &mut [f32]) -> io::Result<()> {
        let mut bytes = vec![0; 4 * values.len()];
        self.file.read_exact_at(&mut bytes, self.other + place(index))?;
        let (words, _) = bytes.as_chunks::<4>();
        values.iter_mut().zip(words).for_each(|(value, word)| *value = f32::from_le_bytes(*word));
        Ok(())
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("mark", &self.mark).finish_non_exhaustive()
    }
}

fn place(index: usize) -> u64 {
    ((index % AHEAD) * PIECE_BYTES) as u64
}

/// Names what sees the same processes as this one: the running system and its process namespace.
fn host() -> io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let namespace = std::fs::read_link("/proc/self/ns/pid")?;
    Ok(format!("{} {}", boot.trim(), namespace.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_finds_what_the_other_put() {
        let lead = Exchange::create().unwrap();
        let follower = Exchange::open(&lead.offer().unwrap()).unwrap();
        for index in [0, 1, AHEAD - 1, AHEAD] {
            let values: Vec<f32> = (0..5).map(|i| (index * 10 + i) as f32 - 0.5).collect();
            lead.put(index, &values).unwrap();
            follower.put(index, &[f32::MIN_POSITIVE, -0.0]).unwrap();
            let (mut down, mut up) = ([0.0; 5], [1.0; 2]);
            follower.take(index, &mut down).unwrap();
            lead.take(index, &mut up).unwrap();
            assert_eq!(down[..], values);
            assert_eq!(up.map(f32::to_bits), [f32::MIN_POSITIVE, -0.0].map(f32::to_bits));
        }
    }

    #[test]
    fn another_host_or_file_is_not_taken() {
        let lead = Exchange::create().unwrap();
        let offer = lead.offer().unwrap();
        assert!(Exchange::open(&RankMemory { host: "elsewhere".into(), ..offer.clone() }).is_none());
        assert!(Exchange::open(&RankMemory { mark: offer.mark ^ 1, ..offer.clone() }).is_none());
        drop(lead);
        assert!(Exchange::open(&offer).is_none(), "it is gone with its maker, or is another file by now");
    }
}
