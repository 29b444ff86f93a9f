//! A group generated and graded in this process, without a run: for `evaluate` and `sample`.
use super::{CliError, Exit};
use cohort_protocol::messages::reward::{SampleToScore, ScoreRequest};
use cohort_protocol::{GroupLease, SampleIx, Score, ScoreOutcome, Trajectory};
use cohort_reward_workers::{Reward, ScoreInput};
use cohort_rollout::{RolloutError, Stage};
use std::sync::Arc;
use tokio::task::JoinSet;

/// A graded group, in the order of its samples.
pub(super) struct Graded {
    pub(super) trajectories: Vec<Trajectory>,
    pub(super) scores: Vec<Score>,
}

/// Generates and grades one group.
pub(super) async fn group(stage: Stage, lease: GroupLease, reward: Arc<dyn Reward>) -> Result<Graded, CliError> {
    let lease = Arc::new(lease);
    let mut running: JoinSet<Result<Trajectory, RolloutError>> = JoinSet::new();
    for sample in 0..lease.samples {
        let (stage, lease) = (stage.clone(), lease.clone());
        running.spawn(async move { stage.run(&lease, SampleIx(sample), None).await });
    }
    let mut trajectories = Vec::with_capacity(lease.samples.into());
    while let Some(done) = running.join_next().await {
        trajectories.push(done.map_err(|e| CliError::new(Exit::Internal, e))??);
    }
    trajectories.sort_by_key(|t| t.sample);
    let samples = trajectories.iter().map(|t| SampleToScore {
        sample: t.sample,
        turns: t.turns.clone(),
        context_json: t.context_json.clone(),
    });
    let request = ScoreRequest {
        epoch: lease.epoch,
        purpose: lease.purpose,
        group: lease.group,
        attempt: lease.attempt,
        item_json: lease.item.json.clone(),
        seed: lease.seed,
        samples: samples.collect(),
    };
    let outcomes = reward.score(&ScoreInput::from_request(&request)?).await;
    let scores = outcomes.into_iter().map(|outcome| match outcome {
        ScoreOutcome::Scored(score) => Ok(score),
        ScoreOutcome::Failed { error, .. } => Err(CliError::new(Exit::WorkerGaveUp, error)),
    });
    Ok(Graded { scores: scores.collect::<Result<_, _>>()?, trajectories })
}
