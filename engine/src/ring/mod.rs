//! The weight ring of a host: a few reusable slots that hold canonical f32 weights under a policy version.
//!
//! Invariants
//! - **R1** `fetch` gives exactly what `publish` wrote under that version, or an error: a torn, foreign or half-written
//!   slot is recognised by its sequence number and its digest, never returned.
//! - **R2** one writer (the learner); any number of readers. Who may overwrite which slot is the coordinator's decision.
//! - **R3** a writer killed in the middle leaves a slot that readers refuse and the next `publish` repairs.
//!
//! [`SharedRing`] serves the processes of a host, and its slots can be copied to other hosts' rings ([`SlotImage`]); [`LocalRing`] engines of one process, [`HeldRing`] roles that share an
//! engine.
mod held;
mod image;
mod local;
mod shared;

pub use held::HeldRing;
pub use image::SlotImage;
pub use local::LocalRing;
pub use shared::SharedRing;

use crate::{EngineError, WeightSource};
use cohort_model::WeightSet;
use std::io;
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
    /// The engine did not give its weights.
    #[error("slot {slot} cannot be written: {source}")]
    Source {
        /// The slot.
        slot: u32,
        /// Its reason.
        source: EngineError,
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
    /// Overwrites a slot and gives the [`WeightSet::digest`] that it is known by now. `midway` is called once while the slot is
    /// half written: a place to die at, for tests of R3.
    fn publish_through(
        &self,
        slot: u32,
        version: u64,
        weights: &dyn WeightSource,
        midway: &mut dyn FnMut(),
    ) -> Result<u64, RingError>;
    /// [`Self::publish_through`] without a stop.
    fn publish(&self, slot: u32, version: u64, weights: &dyn WeightSource) -> Result<u64, RingError> {
        self.publish_through(slot, version, weights, &mut || {})
    }
    /// Takes only the name of weights where that is enough, and says whether it is.
    fn publish_name(&self, slot: u32, version: u64, digest: u64) -> Result<bool, RingError> {
        let _ = (slot, version, digest);
        Ok(false)
    }
    /// What `publish` wrote there under this version.
    fn fetch(&self, slot: u32, version: u64) -> Result<WeightSet, RingError>;
    /// Whether readers and writer share one engine, which may be ahead of what a slot names.
    fn shares_engine(&self) -> bool {
        false
    }
    /// Number of slots.
    fn slots(&self) -> u32;
}

#[cfg(test)]
mod tests {
    use super::shared::{HEADER_WORDS, PAGE};
    use super::*;
    use cohort_model::Tensor;
    use std::os::fd::AsRawFd;

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
    fn a_shared_engine_needs_names_only() {
        let ring = HeldRing::new(2);
        assert!(ring.publish_name(1, 4, 77).unwrap());
        let error = ring.fetch(1, 4).unwrap_err().to_string();
        assert!(error.contains("the name of version 4 without its weights"), "{error}");
        assert!(matches!(ring.publish_name(2, 4, 77), Err(RingError::NoSlot { .. })));
        assert!(!LocalRing::new(1).publish_name(0, 1, 1).unwrap());
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
