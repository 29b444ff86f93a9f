//! One version on its way: who holds which chunk, who wants it, and which chunk a host takes next from whom.
use super::uploads::Uploads;
use super::wish::Wish;
use super::{Host, Source, UPLOADS};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

/// Holders of a chunk of which the least busy one gives it. A few drawn are nearly as good as all of them.
const ASKED: usize = 16;

/// One version on its way.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) chunks: u32,
    /// The first so many have been hashed.
    pub(super) hashed: u32,
    pub(super) holders: Vec<BTreeSet<Host>>,
    pub(super) wishes: BTreeMap<Host, Wish>,
    /// Hosts with room for a chunk that nobody could give when it was last looked at, in that order.
    pub(super) starved: VecDeque<Host>,
    /// Chunks that leave the head node now.
    pub(super) leaving: BTreeSet<u32>,
}

impl Version {
    /// A host wants it no more, or is gone.
    pub(super) fn forget(&mut self, host: Host) -> Option<Wish> {
        let wish = self.wishes.remove(&host)?;
        self.starved.retain(|&starved| starved != host);
        Some(wish)
    }

    /// S1 to S3: from a host that has it, the least busy one of a few; else from the head node, unless somebody is taking it there.
    /// Hosts begin at different places, so that they have something to give each other.
    pub(super) fn next_for(&self, host: Host, uploads: &Uploads) -> Option<(u32, Source)> {
        let wish = self.wishes.get(&host).filter(|wish| wish.has_room())?;
        let busy = |source| uploads.of(source);
        // The golden ratio's multiples lie far from each other.
        let begin = (u64::from(host) * 2_654_435_769 % u64::from(self.chunks.max(1))) as u32;
        // S5.
        let known = |&&chunk: &&u32| chunk < self.hashed || planted!(UnhashedGiven);
        let in_turn = wish.missing.range(begin..).chain(wish.missing.range(..begin)).filter(known);
        let mut at_head = None;
        for &chunk in in_turn.filter(|chunk| !wish.under_way.contains_key(chunk)) {
            let all = &self.holders[chunk as usize];
            let others = |&&h: &&Host| h != host && !wish.avoid.contains(&(chunk, h));
            // Each host begins with those behind itself, so that not all ask the same ones.
            let around = all.range((Excluded(host), Unbounded)).chain(all.range(..host));
            let mut holders = around.filter(others);
            let few = holders.clone().take(ASKED).map(|&h| Source::Host(h));
            let free = few.filter(|&s| busy(s) < UPLOADS).min_by_key(|&s| busy(s));
            if let Some(source) = free {
                return Some((chunk, source));
            }
            let leaving = self.leaving.contains(&chunk) && !planted!(HeadGivesTwice);
            if at_head.is_none() && holders.next().is_none() && !leaving && busy(Source::Head) < UPLOADS {
                at_head = Some((chunk, Source::Head));
            }
        }
        at_head
    }
}
