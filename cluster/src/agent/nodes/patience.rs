//! How long a run waits for a host that brings what it lacks. Pure.
//!
//! Invariant **W1**: a run that lacks a role's workers for the limit without a break, and is not paused, ends, naming the role; one
//! that is only waiting says so once each time it begins to.
use cohort_protocol::Role;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Since when which role has had no worker.
#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    since: BTreeMap<Role, Instant>,
}

/// Worth saying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// From now on there is no worker of the role.
    Begun(Role),
    /// There has been none for the limit.
    Over(Role),
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, since: BTreeMap::new() }
    }

    /// The longest that a run waits.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// Looks at the roles that have no worker now. A pause begins the waiting anew.
    pub(crate) fn look(&mut self, now: Instant, lacking: &[Role], paused: bool) -> Vec<Waiting> {
        self.since.retain(|role, _| !paused && lacking.contains(role));
        let mut news = Vec::new();
        for &role in lacking.iter().filter(|_| !paused) {
            let since = *self.since.entry(role).or_insert_with(|| {
                news.push(Waiting::Begun(role));
                now
            });
            if now.saturating_duration_since(since) >= self.limit {
                news.push(Waiting::Over(role));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_said_once_ends_with_a_host_and_is_bounded() {
        let (mut patience, start) = (Patience::new(Duration::from_secs(10)), Instant::now());
        let mut at = |seconds, lacking: &[Role], paused| patience.look(start + Duration::from_secs(seconds), lacking, paused);
        assert_eq!(at(0, &[Role::Rollout], false), [Waiting::Begun(Role::Rollout)]);
        assert_eq!(at(9, &[Role::Rollout], false), []);
        assert_eq!(at(9, &[], false), [], "a host has come");
        assert_eq!(at(12, &[Role::Rollout], false), [Waiting::Begun(Role::Rollout)], "and has left");
        assert_eq!(at(15, &[Role::Rollout], true), [], "a paused run needs nobody");
        assert_eq!(at(90, &[Role::Rollout], true), []);
        assert_eq!(at(91, &[Role::Rollout], false), [Waiting::Begun(Role::Rollout)]);
        assert_eq!(at(95, &[Role::Reward, Role::Rollout], false), [Waiting::Begun(Role::Reward)], "each on its own");
        assert_eq!(at(101, &[Role::Reward, Role::Rollout], false), [Waiting::Over(Role::Rollout)]);
    }
}
