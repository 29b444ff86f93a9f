//! What a run is to do, as the controller needs it: numbers only, checked by the config before.
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The plan of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Optimizer steps.
    pub steps: u64,
    /// Groups of one step, at least 1.
    pub groups_per_step: u32,
    /// Samples of one group, at least 1.
    pub group_size: u16,
    /// Policy versions that may lie between the learner and the oldest token of a consumed group; 0 is synchronous.
    pub max_staleness: u64,
    /// Rollout workers expected; leases are spread so that each gets its share.
    pub rollout_workers: u16,
    /// Rollout workers and learner share one engine: when it loads other weights, nothing may be generated.
    pub shared_engine: bool,
    /// Slots of the weight ring, at least 2.
    pub slots: u32,
    /// Evaluation on held-out prompts.
    pub evaluation: Option<EvaluationPlan>,
    /// Steps between checkpoints; 0: only at the end. There is always one at the end.
    pub checkpoint_every: u64,
    /// Time that the steps since the last checkpoint may have taken the learner before another is saved; none: any.
    pub replay_at_most: Option<Duration>,
    /// What a group that cannot be finished means.
    pub on_failure: OnFailure,
    /// Tries for a group's generation or scoring that failed with an answer (lost workers do not count).
    pub max_failures: u32,
    /// How long things may take.
    pub deadlines: Deadlines,
}

/// What whoever runs the coordinator tells it while it goes on: all of it, every time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// No further group begins.
    pub paused: bool,
    /// Rollout workers expected, all hosts together; none: as configured.
    pub rollout_workers: Option<u16>,
}

/// Evaluation rounds: before training, at the end, and every so many steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvaluationPlan {
    /// Steps between rounds; 0: only before and at the end.
    pub every: u64,
    /// Held-out prompts of a round.
    pub prompts: u64,
    /// Samples of a prompt in the sampled round.
    pub samples: u16,
    /// Whether a greedy round (one sample a prompt) is done as well.
    pub greedy: bool,
}

/// What happens when a group cannot be generated or scored after all tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The run stops with the cause: the default of synchronous runs, whose batches are promised.
    Stop,
    /// The group is dropped with its reason, another takes its place.
    Drop,
}

/// Time limits. All are counted from the last sign of progress, never from the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// A worker that says nothing for so long is replaced; it beats each second.
    pub silence: Duration,
    /// A worker that has work and whose progress counter stands for so long is replaced.
    pub stall: Duration,
    /// A group must be delivered within this, or it is leased again.
    pub lease: Duration,
    /// A group must be scored within this, or another worker is asked.
    pub score: Duration,
    /// Wait before a failed try is made again; doubles with each failure.
    pub retry: Duration,
    /// Room on a full disk is waited for so long; zero: not at all.
    pub full_disk: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(5),
            stall: Duration::from_secs(120),
            lease: Duration::from_secs(900),
            score: Duration::from_secs(300),
            retry: Duration::from_millis(200),
            full_disk: Duration::from_secs(600),
        }
    }
}

impl Plan {
    /// Whether groups are generated ahead of the learner.
    #[must_use]
    pub fn is_asynchronous(&self) -> bool {
        self.max_staleness > 0
    }

    /// Evaluation rounds due when `version` steps are done, sampled before greedy.
    #[must_use]
    pub fn rounds_at(&self, version: u64) -> Vec<EvaluationRound> {
        let Some(plan) = self.evaluation.filter(|p| p.prompts > 0) else { return Vec::new() };
        let on_interval = plan.every > 0 && version.is_multiple_of(plan.every);
        if !(version == 0 || version == self.steps || on_interval) {
            return Vec::new();
        }
        let sampled = EvaluationRound { step: version, greedy: false, prompts: plan.prompts, samples: plan.samples };
        let greedy = EvaluationRound { step: version, greedy: true, prompts: plan.prompts, samples: 1 };
        let mut rounds = Vec::new();
        if plan.samples > 0 {
            rounds.push(sampled);
        }
        if plan.greedy {
            rounds.push(greedy);
        }
        rounds
    }

    /// Whether a checkpoint is due when `version` steps are done.
    #[must_use]
    pub fn checkpoint_at(&self, version: u64) -> bool {
        version == self.steps || (version > 0 && self.checkpoint_every > 0 && version.is_multiple_of(self.checkpoint_every))
    }
}

/// One evaluation round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvaluationRound {
    /// Steps done when it was started.
    pub step: u64,
    /// Greedy decoding.
    pub greedy: bool,
    /// Held-out prompts.
    pub prompts: u64,
    /// Samples of each.
    pub samples: u16,
}
