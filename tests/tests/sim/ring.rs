//! The weight ring of the head node: slots that the learner writes and workers read; a reader whose slot was written anew
//! finds out, as with the real ring's sequence numbers.
use cohort_protocol::PolicyVersion;
use std::collections::BTreeMap;

#[derive(Debug, Default, Clone)]
struct Slot {
    holds: Option<(PolicyVersion, u64)>,
    sequence: u64,
}

/// The slots, and which process reads which.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    slots: BTreeMap<u32, Slot>,
    readers: BTreeMap<u32, u32>,
}

impl Ring {
    pub(crate) fn begin_writing(&mut self, slot: u32) {
        let slot = self.slots.entry(slot).or_default();
        (slot.holds, slot.sequence) = (None, slot.sequence + 1);
    }

    pub(crate) fn finish_writing(&mut self, slot: u32, version: PolicyVersion, digest: u64) {
        self.slots.entry(slot).or_default().holds = Some((version, digest));
    }

    /// Gives what the slot's sequence number is now.
    pub(crate) fn begin_reading(&mut self, pid: u32, slot: u32) -> u64 {
        self.readers.insert(pid, slot);
        self.slots.entry(slot).or_default().sequence
    }

    /// The digest of what was read, if it is the version and nobody wrote meanwhile.
    pub(crate) fn finish_reading(&mut self, pid: u32, slot: u32, sequence: u64, version: PolicyVersion) -> Result<u64, String> {
        self.readers.remove(&pid);
        let found = self.slots.entry(slot).or_default().clone();
        match found.holds {
            Some((held, digest)) if held == version && found.sequence == sequence => Ok(digest),
            held => Err(format!("slot {slot} holds {held:?}, version {version} was to be read")),
        }
    }

    pub(crate) fn reader_gone(&mut self, pid: u32) {
        self.readers.remove(&pid);
    }

    /// What a slot holds whole.
    pub(crate) fn holds(&self, slot: u32) -> Option<(PolicyVersion, u64)> {
        self.slots.get(&slot).and_then(|s| s.holds)
    }

    /// The digest of a version, if some slot holds it.
    pub(crate) fn digest_of(&self, version: PolicyVersion) -> Option<u64> {
        self.slots.values().filter_map(|s| s.holds).find(|(held, _)| *held == version).map(|(_, digest)| digest)
    }
}
