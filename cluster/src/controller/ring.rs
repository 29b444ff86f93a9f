//! Which slot of the weight ring the next version goes to.
//!
//! Invariant **R1**: a slot that a live worker may be reading, or that holds the version workers are told to take, is
//! never written. A worker reads from the moment it is told of a slot until it says it is ready with that version.
use cohort_protocol::PolicyVersion;

/// The version that workers are to have, where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedVersion {
    /// Version.
    pub version: PolicyVersion,
    /// Slot.
    pub slot: u32,
    /// Digest of the weights.
    pub digest: u64,
}

/// The first free slot, if there is one.
#[must_use]
pub fn free_slot(slots: u32, published: Option<PublishedVersion>, mut read: impl FnMut(u32) -> bool) -> Option<u32> {
    (0..slots).find(|&slot| published.is_none_or(|p| p.slot != slot) && (!read(slot) || planted!(SlotReused)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_current_slot_nor_one_being_read() {
        let published = Some(PublishedVersion { version: PolicyVersion(3), slot: 0, digest: 1 });
        assert_eq!(free_slot(2, None, |_| false), Some(0));
        assert_eq!(free_slot(2, published, |_| false), Some(1));
        assert_eq!(free_slot(2, published, |slot| slot == 1), None);
        assert_eq!(free_slot(3, published, |slot| slot == 1), Some(2));
    }
}
