//! What one host still lacks of a version.
use super::{Host, Source};
use std::collections::{BTreeMap, BTreeSet};

/// Chunks under way to one host.
pub(super) const WINDOW: usize = 8;
/// Failures of the head node itself for one chunk after which a host's wish is given up.
const HEAD_TRIES: u32 = 3;

/// What a host still lacks.
#[derive(Debug, Default)]
pub(super) struct Wish {
    pub(super) missing: BTreeSet<u32>,
    pub(super) under_way: BTreeMap<u32, Source>,
    /// Sources that failed, and the head node's failures, by chunk.
    pub(super) avoid: BTreeSet<(u32, Host)>,
    pub(super) head_failures: BTreeMap<u32, u32>,
    /// It stands among the starved.
    pub(super) starved: bool,
}

impl Wish {
    /// Whether a chunk is neither there nor on its way.
    pub(super) fn lacks(&self, chunk: u32) -> bool {
        self.missing.contains(&chunk) && !self.under_way.contains_key(&chunk)
    }

    /// Whether another chunk would be taken.
    pub(super) fn has_room(&self) -> bool {
        self.under_way.len() < WINDOW && self.under_way.len() < self.missing.len()
    }

    /// Notes a failure; gives whether there is nobody left to ask.
    pub(super) fn refused(&mut self, chunk: u32, source: Source) -> bool {
        match source {
            Source::Host(from) => {
                self.avoid.insert((chunk, from));
                false
            }
            Source::Head => {
                let failures = self.head_failures.entry(chunk).or_default();
                *failures += 1;
                *failures >= HEAD_TRIES
            }
        }
    }
}
