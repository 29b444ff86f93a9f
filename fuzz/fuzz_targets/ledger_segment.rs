//! A damaged segment of the ledger: every record that is still found is one that was written, those before the last
//! acknowledged one are read as they were or refused, and writing goes on behind what is left.
#![no_main]
use cohort_cluster::ledger::segments::{RecordKind, SegmentLog, read_record, segment_path};
use libfuzzer_sys::fuzz_target;
use std::fs;

fuzz_target!(|input: (Vec<Vec<u8>>, Vec<(u16, u8)>, u16, u8)| {
    let (payloads, flips, cut, acknowledged) = input;
    let folder = tempfile::tempdir().expect("a folder");
    let (mut log, _) = SegmentLog::open(folder.path(), None).expect("an empty log");
    let places: Vec<_> = payloads.iter().map(|bytes| log.append(RecordKind::Scores, bytes).expect("a record")).collect();
    drop(log);
    let path = segment_path(folder.path(), 1);
    let mut bytes = fs::read(&path).expect("the segment");
    for (at, change) in flips {
        if let Some(byte) = bytes.get_mut(usize::from(at)) {
            *byte ^= change;
        }
    }
    bytes.truncate(bytes.len() - usize::from(cut).min(bytes.len()));
    fs::write(&path, bytes).expect("the damaged segment");

    let known = usize::from(acknowledged).min(places.len());
    let Ok((mut log, found)) = SegmentLog::open(folder.path(), known.checked_sub(1).map(|last| places[last])) else { return };
    for (place, payload) in places.iter().zip(&payloads).take(known) {
        if let Ok(read) = read_record(folder.path(), *place, RecordKind::Scores) {
            assert_eq!(&read, payload);
        }
    }
    assert!(known + found.len() <= places.len(), "more records than were written");
    for (record, (place, payload)) in found.iter().zip(places.iter().zip(&payloads).skip(known)) {
        assert_eq!((record.place, &record.payload), (*place, payload));
    }
    let next = log.append(RecordKind::Trajectories, b"next").expect("there is room");
    assert_eq!(read_record(folder.path(), next, RecordKind::Trajectories).expect("what was just written"), b"next");
});
