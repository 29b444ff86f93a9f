//! Append-only files that hold what workers delivered, byte for byte, before anything is done with it.
//!
//! A file starts with [`MAGIC`]; a record is `len: u32 LE | kind: u8 | checksum: 16 bytes | payload`, the checksum
//! being the head of BLAKE3 over length, kind and payload.
//!
//! Invariants
//! - **S1** [`SegmentLog::append`] is not durable; [`SegmentLog::sync`] is, and only then may a record be acknowledged.
//! - **S2** a failed append leaves the file as long as it was; after a failed sync the log refuses everything
//!   (the kernel may have dropped the dirty pages, trying again would lie).
//! - **S3** opening cuts a torn tail behind the last acknowledged byte, and never one before it: there, any
//!   disagreement is damage and an error.
use super::error::LedgerError;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// First bytes of every segment.
pub const MAGIC: &[u8; 8] = b"COHSEG01";
/// Bytes in front of a payload.
pub const RECORD_HEADER: u64 = 4 + 1 + 16;
/// A segment that has grown past this is closed and the next one begun.
const ROTATE_AT: u64 = 256 << 20;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// A [`cohort_protocol::TrajectoryBatch`].
    Trajectories = 1,
    /// A [`cohort_protocol::messages::reward::ScoreReply`].
    Scores = 2,
}

impl RecordKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Trajectories),
            2 => Some(Self::Scores),
            _ => None,
        }
    }
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the segment, from 1.
    pub segment: u32,
    /// Offset of the record's header.
    pub offset: u64,
    /// Bytes of its payload.
    pub len: u32,
}

impl Place {
    /// Offset of the first byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + RECORD_HEADER + u64::from(self.len)
    }
}

/// A whole record found behind the last acknowledged one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unacknowledged {
    /// Where.
    pub place: Place,
    /// What it says it is.
    pub kind: RecordKind,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The writing end; one at a time in a run directory.
#[derive(Debug)]
pub struct SegmentLog {
    dir: PathBuf,
    number: u32,
    file: File,
    end: u64,
    poisoned: Option<String>,
    room: Option<u64>,
}

impl SegmentLog {
    /// Opens or begins the log in `dir`. `acknowledged` is the last record the index knows. Returns the whole records
    /// behind it; what is torn there is cut off.
    pub fn open(dir: &Path, acknowledged: Option<Place>) -> Result<(Self, Vec<Unacknowledged>), LedgerError> {
        fs::create_dir_all(dir).map_err(|e| LedgerError::io("make", dir, e))?;
        let last = last_segment(dir)?;
        let floor = acknowledged.map_or(0, |p| p.segment);
        if last < floor {
            return Err(LedgerError::Corrupt { path: segment_path(dir, floor), what: "the segment is gone".into() });
        }
        let (mut found, mut number) = (Vec::new(), floor.max(1));
        while number <= last {
            let from = acknowledged.filter(|p| p.segment == number).map_or(0, |p| p.end());
            let (records, whole) = scan(dir, number, from)?;
            cut(&segment_path(dir, number), whole)?;
            found.extend(records);
            number += 1;
        }
        let number = last.max(1);
        let (file, end) = open_for_append(dir, number)?;
        Ok((Self { dir: dir.to_owned(), number, file, end, poisoned: None, room: None }, found))
    }

    /// Opens or begins the log in `dir` and forgets everything behind `acknowledged`: for an index that is written again from a
    /// log of its own, so that every record comes to lie where it would have lain.
    pub fn open_cut(dir: &Path, acknowledged: Option<Place>) -> Result<Self, LedgerError> {
        fs::create_dir_all(dir).map_err(|e| LedgerError::io("make", dir, e))?;
        let (number, end) = acknowledged.map_or((1, MAGIC.len() as u64), |p| (p.segment, p.end()));
        for later in (number + 1..=last_segment(dir)?).rev() {
            let path = segment_path(dir, later);
            fs::remove_file(&path).map_err(|e| LedgerError::io("remove", &path, e))?;
        }
        let path = segment_path(dir, number);
        if path.exists() {
            cut(&path, end)?;
        }
        let (file, size) = match acknowledged {
            Some(_) if !path.exists() => return Err(LedgerError::Corrupt { path, what: "the segment is gone".into() }),
            _ => open_for_append(dir, number)?,
        };
        if size < end {
            let what = format!("it ends at {size}, acknowledged records reach to {end}");
            return Err(LedgerError::Corrupt { path, what });
        }
        Ok(Self { dir: dir.to_owned(), number, file, end, poisoned: None, room: None })
    }

    /// Writes a record behind the last one; durable after [`SegmentLog::sync`].
    pub fn append(&mut self, kind: RecordKind, payload: &[u8]) -> Result<Place, LedgerError> {
        self.check()?;
        if self.end > ROTATE_AT {
            self.sync()?;
            let (file, end) = open_for_append(&self.dir, self.number + 1)?;
            (self.number, self.file, self.end) = (self.number + 1, file, end);
        }
        let path = self.path();
        let len = u32::try_from(payload.len())
            .map_err(|_| LedgerError::Corrupt { path: path.clone(), what: format!("a record of {} bytes", payload.len()) })?;
        let mut bytes = Vec::with_capacity(payload.len() + 32);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.push(kind as u8);
        bytes.extend_from_slice(&checksum(len, kind as u8, payload));
        bytes.extend_from_slice(payload);
        if let Err(error) = self.write(&bytes) {
            if let Err(e) = self.file.set_len(self.end) {
                self.poisoned = Some(format!("{error}, and taking the half-written record back failed: {e}"));
            }
            return Err(LedgerError::io("append to", &path, error));
        }
        let place = Place { segment: self.number, offset: self.end, len };
        self.end = place.end();
        Ok(place)
    }

    /// Makes everything appended durable.
    pub fn sync(&mut self) -> Result<(), LedgerError> {
        self.check()?;
        self.file.sync_data().map_err(|e| {
            self.poisoned = Some(e.to_string());
            LedgerError::io("sync", &self.path(), e)
        })
    }

    /// Takes back what was appended behind `place_end` of the current segment and is not acknowledged.
    pub fn rollback(&mut self, number: u32, end: u64) {
        let result = if number == self.number { self.file.set_len(end) } else { Ok(()) };
        match result {
            Ok(()) if number == self.number => self.end = end,
            // Records in a segment begun meanwhile stay: unacknowledged, found again and judged at the next opening.
            Ok(()) => {}
            Err(e) => self.poisoned = Some(e.to_string()),
        }
    }

    /// Segment and length as they are now, for [`SegmentLog::rollback`].
    #[must_use]
    pub fn position(&self) -> (u32, u64) {
        (self.number, self.end)
    }

    /// Whether it takes more after an error (S2).
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.poisoned.is_none()
    }

    /// Refuses growth past `bytes` more, as a full disk would.
    #[cfg(test)]
    pub(crate) fn limit_room(&mut self, bytes: Option<u64>) {
        self.room = bytes;
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if let Some(room) = self.room {
            let fits = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
            self.file.write_all_at(&bytes[..fits], self.end)?;
            self.room = Some(room - fits as u64);
            if fits < bytes.len() {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            return Ok(());
        }
        self.file.write_all_at(bytes, self.end)
    }

    fn check(&self) -> Result<(), LedgerError> {
        match &self.poisoned {
            Some(why) => Err(LedgerError::Poisoned { path: self.path(), why: why.clone() }),
            None => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        segment_path(&self.dir, self.number)
    }
}

/// Reads one record and checks every byte of it.
pub fn read_record(dir: &Path, place: Place, kind: RecordKind) -> Result<Vec<u8>, LedgerError> {
    let path = segment_path(dir, place.segment);
    let file = File::open(&path).map_err(|e| LedgerError::io("open", &path, e))?;
    let damaged = |what: String| LedgerError::Corrupt { path: path.clone(), what };
    let size = file.metadata().map_err(|e| LedgerError::io("read", &path, e))?.len();
    if place.end() > size {
        return Err(damaged(format!("the record at {} ends at {}, the file at {size}", place.offset, place.end())));
    }
    let mut bytes = vec![0; RECORD_HEADER as usize + place.len as usize];
    file.read_exact_at(&mut bytes, place.offset).map_err(|e| LedgerError::io("read", &path, e))?;
    match whole_record(&bytes) {
        Some((found, payload)) if found == kind && payload.len() == place.len as usize => {
            bytes.drain(..RECORD_HEADER as usize);
            Ok(bytes)
        }
        Some((found, _)) => Err(damaged(format!("the record at {} is {found:?}, {kind:?} was expected", place.offset))),
        None => Err(damaged(format!("checksum of the record at {} does not hold", place.offset))),
    }
}

/// File of a segment.
#[must_use]
pub fn segment_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:06}.seg"))
}

fn checksum(len: u32, kind: u8, payload: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&len.to_le_bytes()).update(&[kind]).update(payload);
    let mut head = [0; 16];
    head.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    head
}

/// The record at the start of `bytes`, if it is whole and its checksum holds.
fn whole_record(bytes: &[u8]) -> Option<(RecordKind, &[u8])> {
    let (header, rest) = bytes.split_at_checked(RECORD_HEADER as usize)?;
    let len = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
    let payload = rest.get(..len as usize)?;
    let kind = RecordKind::from_byte(header[4])?;
    (checksum(len, header[4], payload) == header[5..]).then_some((kind, payload))
}

/// Whole records of a segment from `from` on, and the offset behind the last of them.
fn scan(dir: &Path, number: u32, from: u64) -> Result<(Vec<Unacknowledged>, u64), LedgerError> {
    let path = segment_path(dir, number);
    let mut file = File::open(&path).map_err(|e| LedgerError::io("open", &path, e))?;
    let size = file.metadata().map_err(|e| LedgerError::io("read", &path, e))?.len();
    if size < from {
        let what = format!("it ends at {size}, acknowledged records reach to {from}");
        return Err(LedgerError::Corrupt { path, what });
    }
    let mut magic = [0; 8];
    let whole_magic = size >= 8 && file.read_exact(&mut magic).is_ok() && &magic == MAGIC;
    if !whole_magic {
        return match from {
            0 => Ok((Vec::new(), 0)),
            _ => Err(LedgerError::Corrupt { path, what: "its first bytes are not a segment's".into() }),
        };
    }
    let mut offset = from.max(MAGIC.len() as u64);
    file.seek(SeekFrom::Start(offset)).map_err(|e| LedgerError::io("read", &path, e))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).map_err(|e| LedgerError::io("read", &path, e))?;
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some((kind, payload)) = whole_record(&tail[at..]) {
        let place = Place { segment: number, offset, len: payload.len() as u32 };
        found.push(Unacknowledged { place, kind, payload: payload.to_vec() });
        at += RECORD_HEADER as usize + payload.len();
        offset = place.end();
    }
    Ok((found, offset))
}

/// Cuts a segment behind its last whole record, durably.
fn cut(path: &Path, end: u64) -> Result<(), LedgerError> {
    let file = OpenOptions::new().write(true).open(path).map_err(|e| LedgerError::io("open", path, e))?;
    let size = file.metadata().map_err(|e| LedgerError::io("read", path, e))?.len();
    if size > end {
        file.set_len(end).and_then(|()| file.sync_all()).map_err(|e| LedgerError::io("cut the torn tail of", path, e))?;
    }
    Ok(())
}

fn open_for_append(dir: &Path, number: u32) -> Result<(File, u64), LedgerError> {
    let path = segment_path(dir, number);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| LedgerError::io("open", &path, e))?;
    let size = file.metadata().map_err(|e| LedgerError::io("read", &path, e))?.len();
    if size >= MAGIC.len() as u64 {
        return Ok((file, size));
    }
    file.write_all_at(MAGIC, 0).and_then(|()| file.sync_all()).map_err(|e| LedgerError::io("begin", &path, e))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| LedgerError::io("sync", dir, e))?;
    Ok((file, MAGIC.len() as u64))
}

fn last_segment(dir: &Path) -> Result<u32, LedgerError> {
    let mut last = 0;
    for entry in fs::read_dir(dir).map_err(|e| LedgerError::io("list", dir, e))? {
        let name = entry.map_err(|e| LedgerError::io("list", dir, e))?.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".seg")).and_then(|n| n.parse::<u32>().ok());
        last = last.max(number.unwrap_or(0));
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(dir: &Path, payloads: &[Vec<u8>]) -> Vec<Place> {
        let (mut log, found) = SegmentLog::open(dir, None).unwrap();
        assert!(found.is_empty());
        let places = payloads.iter().map(|p| log.append(RecordKind::Scores, p).unwrap()).collect();
        log.sync().unwrap();
        places
    }

    #[test]
    fn a_tail_cut_at_every_byte_recovers_to_the_last_whole_record() {
        let payloads: Vec<Vec<u8>> = (0..4u8).map(|i| vec![i; 3 + 7 * i as usize]).collect();
        let source = tempfile::tempdir().unwrap();
        let places = filled(source.path(), &payloads);
        let whole = fs::read(segment_path(source.path(), 1)).unwrap();
        for size in 0..=whole.len() {
            let dir = tempfile::tempdir().unwrap();
            fs::write(segment_path(dir.path(), 1), &whole[..size]).unwrap();
            let (mut log, found) = SegmentLog::open(dir.path(), None).unwrap();
            let want = places.iter().filter(|p| p.end() <= size as u64).count();
            assert_eq!(found.iter().map(|r| r.payload.clone()).collect::<Vec<_>>(), payloads[..want], "cut at {size}");
            // Writing goes on behind the last whole record.
            let place = log.append(RecordKind::Scores, b"next").unwrap();
            assert_eq!(read_record(dir.path(), place, RecordKind::Scores).unwrap(), b"next");
            if want > 0 {
                assert_eq!(place.offset, places[want - 1].end());
            }
        }
    }

    #[test]
    fn what_was_acknowledged_is_never_cut() {
        let dir = tempfile::tempdir().unwrap();
        let places = filled(dir.path(), &[vec![1; 50], vec![2; 50]]);
        let path = segment_path(dir.path(), 1);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(SegmentLog::open(dir.path(), Some(places[1])), Err(LedgerError::Corrupt { .. })));
        assert!(SegmentLog::open(dir.path(), Some(places[0])).is_ok());
        fs::remove_file(&path).unwrap();
        assert!(matches!(SegmentLog::open(dir.path(), Some(places[0])), Err(LedgerError::Corrupt { .. })));
    }

    #[test]
    fn a_full_disk_leaves_the_log_whole_and_going_on_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = SegmentLog::open(dir.path(), None).unwrap();
        let first = log.append(RecordKind::Trajectories, &[7; 100]).unwrap();
        for room in [0, 1, 20, 21, 60, 120] {
            log.limit_room(Some(room));
            assert!(matches!(log.append(RecordKind::Trajectories, &[8; 100]), Err(LedgerError::NoSpace { .. })));
            assert_eq!(fs::metadata(segment_path(dir.path(), 1)).unwrap().len(), first.end());
        }
        log.limit_room(None);
        let second = log.append(RecordKind::Trajectories, &[9; 100]).unwrap();
        log.sync().unwrap();
        assert_eq!(read_record(dir.path(), first, RecordKind::Trajectories).unwrap(), [7; 100]);
        assert_eq!(read_record(dir.path(), second, RecordKind::Trajectories).unwrap(), [9; 100]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_flipped_bit_is_seen(at in 0usize..400, bit in 0u8..8) {
            let dir = tempfile::tempdir().unwrap();
            let places = filled(dir.path(), &[vec![3; 100], vec![4; 120]]);
            let path = segment_path(dir.path(), 1);
            let mut bytes = fs::read(&path).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
            let reads: Vec<_> = places.iter().map(|p| read_record(dir.path(), *p, RecordKind::Scores)).collect();
            let hit = places.iter().position(|p| (p.offset..p.end()).contains(&(at as u64)));
            for (i, read) in reads.into_iter().enumerate() {
                prop_assert_eq!(read.is_err(), hit == Some(i));
            }
            if hit.is_none() {
                // In the magic: nothing of the file is believed.
                prop_assert!(SegmentLog::open(dir.path(), Some(places[1])).is_err());
            }
        }
    }
}
