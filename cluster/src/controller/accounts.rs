//! How many groups there were and what became of them, and how much of the time learner and rollout workers had nothing to
//! do: for status, metrics and summary. The proof is the ledger's ([`crate::ledger::audit()`]).
use crate::ledger::Past;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Training groups since the run began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Ever leased for training, or begun again.
    pub generated: u64,
    /// Of committed steps.
    pub consumed: u64,
    /// Given up, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Prompts begun again by this incarnation because their group was too stale.
    pub requeued: u64,
    /// Dropped for a failure since the last commit, and why the last one was.
    pub failed_in_a_row: u32,
}

impl Accounts {
    /// As an earlier incarnation left them.
    #[must_use]
    pub fn of(past: &Past) -> Self {
        let consumed = past.commits.keys().filter_map(|step| past.intents.get(step)).map(|i| i.groups.len() as u64).sum();
        let dropped = past.dropped.clone();
        let generated = past.open_groups.len() as u64 + consumed + dropped.values().sum::<u64>();
        Self { generated, consumed, dropped, ..Self::default() }
    }

    /// Counts a group that was given up.
    pub(super) fn dropped(&mut self, reason: &str) {
        *self.dropped.entry(reason.to_owned()).or_default() += 1;
    }

    /// Leased and neither consumed nor given up.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.generated.saturating_sub(self.consumed + self.dropped.values().sum::<u64>())
    }
}

/// Time without work since it was last asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Idleness {
    seen: Option<Instant>,
    total: Duration,
    learner: Duration,
    /// Mean over the expected rollout workers.
    rollout: Duration,
}

impl Idleness {
    /// Time has passed in which the learner had a request or not, and so many of the expected rollout workers a lease.
    pub(super) fn pass(&mut self, now: Instant, learner_busy: bool, working: usize, expected: u16) {
        let passed = self.seen.replace(now).map_or(Duration::ZERO, |seen| now.saturating_duration_since(seen));
        self.total += passed;
        if !learner_busy {
            self.learner += passed;
        }
        let expected = u32::from(expected.max(1));
        let idle = expected.saturating_sub(u32::try_from(working).unwrap_or(u32::MAX));
        self.rollout += passed * idle / expected;
    }

    /// Parts of the time, learner's and rollout workers', 0 to 1; counting begins anew. `None` where no time has passed.
    pub(super) fn take(&mut self) -> Option<(f64, f64)> {
        let Self { total, learner, rollout, .. } = std::mem::replace(self, Self { seen: self.seen, ..Self::default() });
        let part = |of: Duration| of.as_secs_f64() / total.as_secs_f64();
        (total > Duration::ZERO).then(|| (part(learner), part(rollout)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_a_part_of_all_time() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let mut idle = Idleness::default();
        idle.pass(begun, false, 0, 2);
        assert_eq!(idle.take(), None, "no time has passed");
        idle.pass(begun + second, false, 2, 2);
        idle.pass(begun + 4 * second, true, 1, 2);
        assert_eq!(idle.take(), Some((0.25, 0.375)));
        assert_eq!(idle.take(), None);
    }
}
