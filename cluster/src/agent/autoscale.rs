//! How many rollout workers a run should have, from how long the learner waits and how much is ready for it. Pure.
//!
//! After every committed step: a learner that waits while nothing is ready wants one worker more; one that hardly waits while
//! steps' worth of groups lie ready has one too many. A change is followed by [`SETTLE`] steps of looking on; growth that did
//! not shorten the waiting is taken back and not tried again for [`REST`] steps: more workers than cores help nobody.
use crate::config::AutoscaleConfig;

/// Part of the time that the learner may wait before there are too few workers.
const WAITS: f64 = 0.25;
/// Below this part it hardly waits.
const BUSY: f64 = 0.05;
/// Steps after a change before the next is thought of.
const SETTLE: u32 = 4;
/// By how much growth must shorten the waiting to be kept.
const HELPS: f64 = 0.02;
/// Steps after growth that did not help.
const REST: u32 = 50;

/// What is known after a committed step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// Part of the time since the step before in which the learner had nothing to do.
    pub(super) learner_idle: f64,
    /// Complete groups that wait for a step, in steps.
    pub(super) ready_steps: f64,
    /// Rollout workers there are to be.
    pub(super) workers: u16,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Autoscale {
    bounds: AutoscaleConfig,
    /// Steps to look on.
    wait: u32,
    /// Idle parts seen since the last change.
    seen: Vec<f64>,
    /// What the learner waited before the last growth.
    before_growth: Option<f64>,
}

impl Autoscale {
    pub(super) fn new(bounds: AutoscaleConfig) -> Self {
        Self { bounds, wait: SETTLE, seen: Vec::new(), before_growth: None }
    }

    /// The number of workers from now on, where it is to change.
    pub(super) fn stepped(&mut self, seen: Seen) -> Option<u16> {
        self.seen.push(seen.learner_idle);
        if self.wait > 0 {
            self.wait -= 1;
            return None;
        }
        // The first steps after a change still show the time before it.
        let settled = &self.seen[self.seen.len().saturating_sub(SETTLE as usize)..];
        let idle = settled.iter().sum::<f64>() / settled.len() as f64;
        let (least, most) = (self.bounds.rollout_min.get(), self.bounds.rollout_max.get());
        if let Some(before) = self.before_growth.take()
            && idle > before - HELPS
            && seen.workers > least
        {
            return self.change(seen.workers - 1, REST);
        }
        if seen.workers < least || seen.workers > most {
            return self.change(seen.workers.clamp(least, most), SETTLE);
        }
        if idle > WAITS && seen.ready_steps < 1.0 && seen.workers < most {
            self.before_growth = Some(idle);
            return self.change(seen.workers + 1, SETTLE);
        }
        if idle < BUSY && seen.ready_steps > 2.0 && seen.workers > least {
            return self.change(seen.workers - 1, SETTLE);
        }
        None
    }

    fn change(&mut self, workers: u16, wait: u32) -> Option<u16> {
        self.seen.clear();
        self.wait = wait;
        Some(workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU16;

    fn autoscale(least: u16, most: u16) -> Autoscale {
        let n = |n| NonZeroU16::new(n).unwrap();
        Autoscale::new(AutoscaleConfig { rollout_min: n(least), rollout_max: n(most) })
    }

    /// A run whose learner takes 1 s a step and whose workers take 4 s together, spread over at most `cores` of them.
    fn run(autoscale: &mut Autoscale, mut workers: u16, cores: u16, steps: u32) -> (u16, u32) {
        let mut changes = 0;
        for _ in 0..steps {
            let sampling = 4.0 / f64::from(workers.min(cores));
            let learner_idle = ((sampling - 1.0) / sampling).max(0.0);
            let ready_steps = if sampling < 1.0 { 3.0 } else { 0.0 };
            if let Some(now) = autoscale.stepped(Seen { learner_idle, ready_steps, workers }) {
                workers = now;
                changes += 1;
            }
        }
        (workers, changes)
    }

    #[test]
    fn workers_are_added_until_the_learner_hardly_waits() {
        let (workers, _) = run(&mut autoscale(1, 16), 1, 16, 100);
        assert!((3..=4).contains(&workers), "{workers}");
        let (workers, _) = run(&mut autoscale(1, 2), 1, 16, 100);
        assert_eq!(workers, 2, "within its bounds");
    }

    #[test]
    fn too_many_are_taken_away_and_bounds_are_kept() {
        let (workers, _) = run(&mut autoscale(1, 16), 12, 16, 200);
        assert!((3..=4).contains(&workers), "{workers}");
        assert_eq!(run(&mut autoscale(5, 16), 1, 16, 20).0, 5);
        assert_eq!(run(&mut autoscale(1, 3), 9, 16, 20).0, 3);
    }

    #[test]
    fn growth_that_does_not_help_is_taken_back_and_not_tried_all_the_time() {
        let (workers, changes) = run(&mut autoscale(1, 16), 1, 2, 300);
        assert!((2..=3).contains(&workers), "{workers}");
        assert!(changes < 16, "{changes} changes in 300 steps");
    }
}
