//! From scored samples to groups with advantages. Pure; the coordinator owns one and feeds it from the journal.
//!
//! Invariants
//! - **G1** only complete groups leave, each exactly once, in the order of `GroupId` without a gap: a group that is
//!   missing holds back those behind it until it is complete or dropped.
//! - **G2** the first accepted sample of a place wins; another is refused and counted.
//! - **G3** what leaves is a function of the samples alone, never of the order in which they came.
pub mod stats;

use crate::advantage::Advantage;
use cohort_protocol::{CodecError, GroupId, GroupPayload, SampleIx, ScoredTrajectory, codec};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

/// A sample that is not taken.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum Refused {
    /// Its place is taken: a retry of something already accepted.
    #[error("group {group}, sample {sample}: already accepted")]
    Duplicate {
        /// Group.
        group: GroupId,
        /// Sample.
        sample: SampleIx,
    },
    /// Its group has been consumed or dropped.
    #[error("group {group}: already {fate}")]
    Closed {
        /// Group.
        group: GroupId,
        /// "consumed" or "dropped".
        fate: &'static str,
    },
    /// Its group has fewer places.
    #[error("group {group}, sample {sample}: a group has {size} samples")]
    OutOfRange {
        /// Group.
        group: GroupId,
        /// Sample.
        sample: SampleIx,
        /// Samples of a group.
        size: usize,
    },
    /// Its score, or a part of it, is no finite number: an error of the grader, never a reward.
    #[error("group {group}, sample {sample}: reward {name:?} is {value}")]
    NonFinite {
        /// Group.
        group: GroupId,
        /// Sample.
        sample: SampleIx,
        /// The part; "total" is the score itself.
        name: String,
        /// Its value.
        value: f64,
    },
}

/// What taking a sample changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// The group still waits for that many.
    Waiting(usize),
    /// The group is complete.
    Complete,
}

/// A group on its way to a step.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadyGroup {
    /// Samples and advantages.
    pub payload: GroupPayload,
    /// [`payload_digest`] of it, for the intent.
    pub digest: String,
}

/// Collects samples into groups.
#[derive(Debug)]
pub struct Aggregator {
    group_size: usize,
    advantage: Arc<dyn Advantage>,
    next: GroupId,
    open: BTreeMap<GroupId, Vec<Option<ScoredTrajectory>>>,
    dropped: BTreeSet<GroupId>,
    duplicates: u64,
}

impl Aggregator {
    /// An aggregator whose first group is `next`: 0 in a new run, the first unconsumed one after a resume.
    #[must_use]
    pub fn new(group_size: usize, advantage: Arc<dyn Advantage>, next: GroupId) -> Self {
        Self { group_size, advantage, next, open: BTreeMap::new(), dropped: BTreeSet::new(), duplicates: 0 }
    }

    /// Takes one scored sample.
    pub fn offer(&mut self, scored: ScoredTrajectory) -> Result<Offered, Refused> {
        let (group, sample) = (scored.trajectory.group, scored.trajectory.sample);
        let closed = |fate| Err(Refused::Closed { group, fate });
        if self.dropped.contains(&group) {
            return closed("dropped");
        }
        if group < self.next {
            self.duplicates += 1;
            return closed("consumed");
        }
        if usize::from(sample.0) >= self.group_size {
            return Err(Refused::OutOfRange { group, sample, size: self.group_size });
        }
        check_finite(&scored)?;
        let places = self.open.entry(group).or_insert_with(|| vec![None; self.group_size]);
        let place = &mut places[usize::from(sample.0)];
        if place.is_some() {
            self.duplicates += 1;
            return Err(Refused::Duplicate { group, sample });
        }
        *place = Some(scored);
        Ok(match places.iter().filter(|p| p.is_none()).count() {
            0 => Offered::Complete,
            missing => Offered::Waiting(missing),
        })
    }

    /// Gives a group up; the order passes over it. What it had is forgotten.
    ///
    /// Errors: [`Refused::Closed`] when it was consumed or dropped before.
    pub fn drop_group(&mut self, group: GroupId) -> Result<(), Refused> {
        if group < self.next {
            return Err(Refused::Closed { group, fate: "consumed" });
        }
        if !self.dropped.insert(group) {
            return Err(Refused::Closed { group, fate: "dropped" });
        }
        self.open.remove(&group);
        Ok(())
    }

    /// The next `count` groups in order, with advantages, once all of them are complete; else `None` and nothing changes.
    ///
    /// Errors: a group over the codec's limits, which no step can carry: the run must stop.
    pub fn take(&mut self, count: usize) -> Result<Option<Vec<ReadyGroup>>, CodecError> {
        let mut ids = Vec::with_capacity(count);
        let mut at = self.next;
        while ids.len() < count {
            if !self.dropped.contains(&at) {
                if !self.open.get(&at).is_some_and(|places| places.iter().all(Option::is_some)) {
                    return Ok(None);
                }
                ids.push(at);
            }
            at = GroupId(at.0 + 1);
        }
        let mut groups = Vec::with_capacity(count);
        for id in ids {
            let places = self.open.remove(&id).unwrap_or_default();
            groups.push(ready(id, places.into_iter().flatten().collect(), self.advantage.as_ref())?);
        }
        self.next = at;
        Ok(Some(groups))
    }

    /// The first group that has neither left nor been passed over.
    #[must_use]
    pub fn next(&self) -> GroupId {
        self.next
    }

    /// Complete groups that wait to be taken, in order; those behind a gap included.
    pub fn complete(&self) -> impl Iterator<Item = GroupId> {
        self.open.iter().filter(|(_, places)| places.iter().all(Option::is_some)).map(|(&id, _)| id)
    }

    /// Samples that a group still waits for.
    #[must_use]
    pub fn missing(&self, group: GroupId) -> usize {
        match self.open.get(&group) {
            Some(places) => places.iter().filter(|p| p.is_none()).count(),
            None if group < self.next || self.dropped.contains(&group) => 0,
            None => self.group_size,
        }
    }

    /// Samples refused because their place was taken or their group consumed.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }
}

/// A complete group with its advantages and digest: a pure function of the samples, for replays from the journal.
///
/// Errors: a payload over the codec's limits.
pub fn ready(group: GroupId, samples: Vec<ScoredTrajectory>, advantage: &dyn Advantage) -> Result<ReadyGroup, CodecError> {
    let rewards: Vec<f64> = samples.iter().map(|s| s.score.score).collect();
    let payload = GroupPayload { group, samples, advantages: advantage.advantages(&rewards) };
    Ok(ReadyGroup { digest: payload_digest(&payload)?, payload })
}

/// BLAKE3 of a payload's encoding, hex: what an intent names and a step checks.
pub fn payload_digest(payload: &GroupPayload) -> Result<String, CodecError> {
    Ok(blake3::hash(&codec::encode(payload)?).to_hex().to_string())
}

fn check_finite(scored: &ScoredTrajectory) -> Result<(), Refused> {
    let (group, sample) = (scored.trajectory.group, scored.trajectory.sample);
    let total = std::iter::once(("total", scored.score.score));
    let parts = scored.score.breakdown.iter().map(|(name, value)| (name.as_str(), *value));
    match total.chain(parts).find(|(_, value)| !value.is_finite()) {
        Some((name, value)) => Err(Refused::NonFinite { group, sample, name: name.to_owned(), value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advantage::rloo::Rloo;
    use crate::testing::scored;
    use proptest::prelude::*;

    fn aggregator(size: usize) -> Aggregator {
        Aggregator::new(size, Arc::new(Rloo), GroupId(0))
    }

    #[test]
    fn a_group_leaves_once_and_retries_are_counted() {
        let mut a = aggregator(2);
        assert_eq!(a.offer(scored(0, 0, 1.0)), Ok(Offered::Waiting(1)));
        assert!(matches!(a.offer(scored(0, 0, 0.5)), Err(Refused::Duplicate { .. })));
        assert_eq!(a.take(1), Ok(None));
        assert_eq!(a.offer(scored(0, 1, 0.0)), Ok(Offered::Complete));
        let groups = a.take(1).unwrap().unwrap();
        assert_eq!(groups[0].payload.advantages, [1.0, -1.0]);
        assert!(matches!(a.offer(scored(0, 1, 0.0)), Err(Refused::Closed { fate: "consumed", .. })));
        assert_eq!((a.take(1), a.duplicates(), a.next()), (Ok(None), 2, GroupId(1)));
    }

    #[test]
    fn a_gap_holds_back_until_it_is_dropped() {
        let mut a = aggregator(1);
        a.offer(scored(1, 0, 1.0)).unwrap();
        assert_eq!(a.take(1), Ok(None));
        assert_eq!(a.complete().collect::<Vec<_>>(), [GroupId(1)]);
        a.drop_group(GroupId(0)).unwrap();
        assert!(matches!(a.offer(scored(0, 0, 1.0)), Err(Refused::Closed { fate: "dropped", .. })));
        assert!(a.drop_group(GroupId(0)).is_err());
        assert_eq!(a.take(1).unwrap().unwrap()[0].payload.group, GroupId(1));
    }

    #[test]
    fn what_is_no_reward_is_refused() {
        let mut a = aggregator(2);
        assert!(matches!(a.offer(scored(0, 0, f64::NAN)), Err(Refused::NonFinite { name, .. }) if name == "total"));
        let mut part = scored(0, 0, 1.0);
        part.score.breakdown.push(("format".into(), f64::INFINITY));
        assert!(matches!(a.offer(part), Err(Refused::NonFinite { name, .. }) if name == "format"));
        assert!(matches!(a.offer(scored(0, 2, 1.0)), Err(Refused::OutOfRange { size: 2, .. })));
        assert_eq!(a.missing(GroupId(0)), 2, "nothing refused takes a place");
    }

    proptest! {
        /// Any order of arrival, with repetitions, gives the same groups with the same digests.
        #[test]
        fn arrival_does_not_matter(order in Just((0u64..12).collect::<Vec<_>>()).prop_shuffle(), again in 0usize..12) {
            let feed = |order: &[u64]| {
                let (mut a, mut out) = (aggregator(3), Vec::new());
                for &i in order {
                    let _ = a.offer(scored(i / 3, (i % 3) as u16, (i * i % 7) as f64));
                    let _ = a.offer(scored(order[again] / 3, (order[again] % 3) as u16, (order[again].pow(2) % 7) as f64));
                    while let Some(groups) = a.take(2).unwrap() {
                        out.extend(groups);
                    }
                }
                out
            };
            let sorted: Vec<u64> = (0..12).collect();
            let (a, b) = (feed(&order), feed(&sorted));
            prop_assert_eq!(a.len(), 4);
            prop_assert_eq!(a, b);
        }
    }
}
