//! Hung workers of an in-process run. A thread cannot be killed, so that the only way out of a hang that lasts is the end
//! of the process, from which `--resume` goes on. Pure: decides on a clock that the caller holds.
//!
//! Invariants
//! - **H1** a worker whose connection the coordinator ended has [`BACK`] to come back; a pause of the machine ends no run.
//! - **H2** one that came back and is found hung again without having done anything in between does not get a third time.
use crate::progress::{ActorState, ActorStatus};
use cohort_protocol::WorkerId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Time to come back after the coordinator gave a worker up.
pub(super) const BACK: Duration = Duration::from_secs(30);

/// Workers that the coordinator gave up.
#[derive(Debug, Default)]
pub(super) struct Hangs {
    suspects: HashMap<WorkerId, Suspect>,
    /// Work done by each, as last heard.
    progress: HashMap<WorkerId, u64>,
}

#[derive(Debug)]
struct Suspect {
    since: Instant,
    progress: u64,
    why: String,
}

impl Hangs {
    /// The coordinator gave a worker up. Gives the reason where that is the end (H2).
    pub(super) fn given_up(&mut self, now: Instant, worker: WorkerId, why: &str) -> Option<String> {
        if self.suspects.contains_key(&worker) {
            return Some(format!("{why}, and had not moved since it was first given up"));
        }
        let progress = self.progress.get(&worker).copied().unwrap_or(0);
        self.suspects.insert(worker, Suspect { since: now, progress, why: why.to_owned() });
        None
    }

    /// What the actors do now. Gives a worker that did not come back, and why it was given up (H1).
    pub(super) fn seen(&mut self, now: Instant, actors: &[ActorStatus]) -> Option<(WorkerId, String)> {
        for actor in actors {
            let worker = WorkerId { role: actor.role, index: actor.index };
            self.progress.insert(worker, actor.progress);
            let Some(suspect) = self.suspects.get(&worker) else { continue };
            if actor.progress != suspect.progress {
                self.suspects.remove(&worker);
            } else if actor.state == ActorState::Lost && now.saturating_duration_since(suspect.since) > BACK {
                return Some((worker, format!("{}, and did not come back within {} s", suspect.why, BACK.as_secs())));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::Role;

    const WORKER: WorkerId = WorkerId { role: Role::Rollout, index: 1 };

    fn actor(state: ActorState, progress: u64) -> [ActorStatus; 1] {
        let (name, role, index) = (WORKER.to_string(), WORKER.role, WORKER.index);
        [ActorStatus {
            name,
            role,
            index,
            pid: None,
            state,
            restarts: 0,
            lease: None,
            version: None,
            progress,
            breakers: std::collections::BTreeMap::new(),
            numerics: None,
        }]
    }

    #[test]
    fn a_worker_that_stays_away_ends_the_run_and_one_that_comes_back_does_not() {
        let (mut hangs, begun) = (Hangs::default(), Instant::now());
        assert_eq!(hangs.seen(begun, &actor(ActorState::Working, 5)), None);
        assert_eq!(hangs.given_up(begun, WORKER, "rollout-1 said nothing"), None);
        assert_eq!(hangs.seen(begun + BACK, &actor(ActorState::Lost, 5)), None);
        assert_eq!(hangs.seen(begun + 2 * BACK, &actor(ActorState::Working, 6)), None, "back at work");
        assert_eq!(hangs.given_up(begun + 3 * BACK, WORKER, "rollout-1 said nothing"), None, "a new story");
        let (who, why) = hangs.seen(begun + 5 * BACK, &actor(ActorState::Lost, 6)).unwrap();
        assert!(who == WORKER && why.contains("said nothing") && why.contains("30 s"), "{why}");
    }

    #[test]
    fn a_worker_that_hangs_again_where_it_hung_ends_the_run_at_once() {
        let (mut hangs, begun) = (Hangs::default(), Instant::now());
        assert_eq!(hangs.given_up(begun, WORKER, "no progress"), None);
        assert_eq!(hangs.seen(begun + 2 * BACK, &actor(ActorState::Working, 0)), None, "connected again");
        assert!(hangs.given_up(begun + 4 * BACK, WORKER, "no progress").unwrap().contains("no progress"));
    }
}
