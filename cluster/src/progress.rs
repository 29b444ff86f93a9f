//! What a run tells the people and scripts that watch it: live progress, the state of its actors, the final report.
//! These types travel as JSON lines from the coordinator's process to the launching one, and stand in `status.json`
//! and `summary.json`; fields may be added, these stay.
use cohort_protocol::{Role, Turn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", content = "what", rename_all = "snake_case")]
pub enum Progress {
    /// The run directory is locked, checked and open.
    Started {
        /// Where everything is written.
        run_dir: PathBuf,
        /// Steps already committed before this start.
        resumed_at: u64,
        /// Steps of the whole run.
        steps: u64,
    },
    /// What the run is busy with now.
    Phase(RunPhase),
    /// A step has been committed.
    Step(StepProgress),
    /// An evaluation round is complete.
    Evaluation(EvaluationReport),
    /// The actors as they are now; at most four times a second, and at every change of phase.
    Actors(Vec<ActorStatus>),
    /// Something worth a line: a restart with its cause, a refused result, a slow grader.
    Notice(String),
}

/// What the run is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// Waiting for the learner to hold the current policy version.
    Loading,
    /// Committed steps are computed again after the learner was lost.
    Replaying,
    /// Held-out prompts are answered.
    Evaluating,
    /// Groups of the next step are generated and scored.
    Collecting,
    /// The learner computes a step.
    Stepping,
    /// Weights go to the rollout workers.
    Publishing,
    /// A checkpoint is written.
    Checkpointing,
    /// The run was asked to stop and leaves in order.
    Draining,
    /// All done.
    Finished,
}

/// A committed step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepProgress {
    /// The step, from 1.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Mean score of the step's trajectories.
    pub reward: f64,
    /// Mean of every named part of the score.
    pub reward_parts: Vec<(String, f64)>,
    /// Sampled tokens per second while groups were collected.
    pub rollout_tokens_per_s: f64,
    /// Tokens per second through the learner's step.
    pub train_tokens_per_s: f64,
    /// Policy versions between the learner and the oldest consumed token.
    pub staleness: u64,
    /// Seconds since this launch.
    pub elapsed_s: f64,
    /// Seconds to the end at the present pace; `None` until a step was timed.
    pub eta_s: Option<f64>,
    /// The learner's metrics.
    pub metrics: Vec<(String, f64)>,
}

/// One evaluation round on held-out prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Steps done when it was started.
    pub step: u64,
    /// Greedy decoding, or sampled at the training temperature.
    pub greedy: bool,
    /// Mean score over all samples.
    pub reward: f64,
    /// Mean of every named part of the score.
    pub parts: Vec<(String, f64)>,
    /// Mean score of every prompt, in order: paired comparisons start here.
    pub per_prompt: Vec<f64>,
    /// Samples of every prompt.
    pub samples: u16,
    /// One dialogue of the round.
    pub example: Option<ExampleDialogue>,
}

/// A dialogue to show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExampleDialogue {
    /// Held-out prompt's number.
    pub prompt: u64,
    /// Its turns.
    pub turns: Vec<Turn>,
    /// Its score.
    pub reward: f64,
}

/// What an actor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorState {
    /// Started, not yet heard of.
    Starting,
    /// Connected, nothing to do.
    Idle,
    /// Has work.
    Working,
    /// Takes new weights or loads its state.
    Loading,
    /// Its connection ended; a replacement is awaited.
    Lost,
    /// Left in order.
    Stopped,
}

/// One actor, for `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActorStatus {
    /// `rollout-0`.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Which of that role.
    pub index: u16,
    /// Process; actors of an in-process run share one.
    pub pid: Option<u32>,
    /// What it does.
    pub state: ActorState,
    /// How often it was started again.
    pub restarts: u32,
    /// What it has in hand: `group 17 attempt 2`, `step 4`; scripts choose by it whom to kill and when.
    pub lease: Option<String>,
    /// Policy version it holds.
    pub version: Option<u64>,
    /// Counter since its process started that moves while it gets on: sampled tokens of a rollout worker, committed steps
    /// of the coordinator; of the others, work done and seconds within their own limits.
    pub progress: u64,
    /// Of a reward worker: state of each grader's circuit breaker (`closed`, `open`, `half-open`). Absent where there is
    /// none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub breakers: BTreeMap<String, String>,
    /// Of a corrected sampler: its numerics, which are not the run's. Absent elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numerics: Option<String>,
}

/// Training groups since the run began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCounts {
    /// Ever leased.
    pub generated: u64,
    /// Of committed steps.
    pub consumed: u64,
    /// Of them with tokens whose log-probs are no version's own: sampled with other numerics, in int8, or over kept keys and values.
    #[serde(default)]
    pub inexact: u64,
    /// Leased and neither consumed nor dropped.
    pub in_flight: u64,
    /// Of them complete, waiting for a step.
    pub ready: u64,
    /// Given up, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// A disk without room: nothing further begins until there is some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullDisk {
    /// What could not be written.
    pub path: PathBuf,
    /// Bytes that are free on its disk; absent where the system does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Whole seconds that the run has waited.
    pub waited_s: u64,
    /// Whole seconds after which it ends.
    pub patience_s: u64,
}

/// `status.json`: rewritten atomically while the run goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// What the run is busy with.
    pub phase: RunPhase,
    /// Coordinator incarnation.
    pub epoch: u64,
    /// Committed steps.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Milliseconds since the Unix epoch.
    pub updated_ms: u64,
    /// Seconds since this launch.
    #[serde(default)]
    pub elapsed_s: f64,
    /// What became of the training groups.
    #[serde(default)]
    pub groups: GroupCounts,
    /// The disk that the run waits for. Absent where there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_disk: Option<FullDisk>,
    /// Every actor.
    pub actors: Vec<ActorStatus>,
}

/// `summary.json`, and what `launch --json` prints as its last line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaunchReport {
    /// Where everything was written.
    pub run_dir: PathBuf,
    /// Committed steps.
    pub steps: u64,
    /// Mean reward over up to the first five steps.
    pub reward_first5: Option<f64>,
    /// Mean reward over up to the last five steps.
    pub reward_last5: Option<f64>,
    /// Sampled held-out reward before training.
    pub heldout_before: Option<f64>,
    /// Sampled held-out reward at the end.
    pub heldout_after: Option<f64>,
    /// Greedy held-out reward before training.
    pub heldout_greedy_before: Option<f64>,
    /// Greedy held-out reward at the end.
    pub heldout_greedy_after: Option<f64>,
    /// Sampled tokens per second while groups were collected.
    pub rollout_tokens_per_s: f64,
    /// Tokens per second through the learner.
    pub train_tokens_per_s: f64,
    /// Largest difference between a stored log-prob and the learner's own, over all steps; 0 is the promise.
    pub max_logprob_diff: f64,
    /// Tokens compared for it.
    pub logprob_tokens_compared: u64,
    /// SHA-256 of the final weights, hex.
    pub weights_sha256: String,
    /// Restarts of all actors.
    pub restarts: u64,
    /// Seconds from launch to the end.
    pub wall_s: f64,
    /// The run reached its last step (`false`: it was drained before).
    pub finished: bool,
    /// A held-out dialogue before training.
    pub example_before: Option<ExampleDialogue>,
    /// The same prompt's dialogue at the end.
    pub example_after: Option<ExampleDialogue>,
    /// Rise of the sampled held-out reward.
    #[serde(default)]
    pub heldout_rise: Option<Rise>,
    /// What became of the training groups.
    #[serde(default)]
    pub groups: GroupCounts,
    /// Part of the time between commits in which the learner had nothing to do, in the mean over steps.
    #[serde(default)]
    pub learner_idle: Option<f64>,
    /// The same of a rollout worker, in the mean over all of them.
    #[serde(default)]
    pub rollout_idle: Option<f64>,
    /// Greatest number of policy versions between a step's base and a token it consumed.
    #[serde(default)]
    pub staleness_max: u64,
    /// Parts of the held-out score before and after, by name.
    pub heldout_parts: Vec<(String, f64, f64)>,
}

/// Rise of a held-out reward between two rounds over the same prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rise {
    /// Mean difference.
    pub mean: f64,
    /// Lower end of its 95 % interval (paired bootstrap over prompts).
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Prompts.
    pub prompts: u64,
}

/// Takes news; must not block (bounded queues behind it drop `Actors` first).
pub trait ProgressSink: Send + Sync {
    /// One piece of news.
    fn emit(&self, news: Progress);
}

/// Throws news away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl ProgressSink for Silent {
    fn emit(&self, _news: Progress) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_news_survives_the_way_to_the_agent() {
        let news = [
            Progress::Started { run_dir: "r".into(), resumed_at: 1, steps: 2 },
            Progress::Phase(RunPhase::Collecting),
            Progress::Actors(Vec::new()),
            Progress::Notice("slow".into()),
        ];
        for piece in news {
            let line = serde_json::to_string(&piece).unwrap();
            assert_eq!(serde_json::from_str::<Progress>(&line).unwrap(), piece, "{line}");
        }
    }
}
