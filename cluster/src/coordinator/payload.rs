//! From what workers delivered to what is judged, digested and sent on. Heavy: runs on blocking threads. Pure.
use crate::controller::{ScoresSummary, TrajectoriesSummary};
use cohort_learner::advantage::Advantage;
use cohort_learner::aggregator::{ReadyGroup, ready};
use cohort_protocol::messages::reward::{SampleToScore, ScoreReply};
use cohort_protocol::{CodecError, SampleIx, Score, ScoreOutcome, ScoredTrajectory, Trajectory, TrajectoryBatch};

/// Checks a batch against itself and says what the controller must know of it.
pub fn summarize_batch(batch: &TrajectoryBatch, digest: String) -> Result<TrajectoriesSummary, String> {
    for (index, trajectory) in batch.trajectories.iter().enumerate() {
        trajectory.validate().map_err(|e| e.to_string())?;
        let (group, sample) = (trajectory.group, trajectory.sample);
        if group != batch.group || usize::from(sample.0) != index {
            return Err(format!("group {}: sample {index} says it is {group}/{sample}", batch.group));
        }
    }
    let samples = u16::try_from(batch.trajectories.len()).map_err(|_| format!("{} samples", batch.trajectories.len()))?;
    Ok(TrajectoriesSummary { digest, samples, versions: batch.versions() })
}

/// Checks a reply against its batch; the digest is that of the group's payload.
pub fn summarize_scores(
    batch: &TrajectoryBatch,
    reply: &ScoreReply,
    advantage: &dyn Advantage,
) -> Result<ScoresSummary, CodecError> {
    let failed = |error: String, retryable| ScoresSummary {
        digest: String::new(),
        scores: Vec::new(),
        parts: Vec::new(),
        failure: Some((error, retryable)),
    };
    let mut scores: Vec<&Score> = Vec::with_capacity(reply.outcomes.len());
    for (index, outcome) in reply.outcomes.iter().enumerate() {
        let sample = outcome.sample;
        match &outcome.outcome {
            _ if usize::from(sample.0) != index => return Ok(failed(format!("score {index} is for sample {sample}"), false)),
            ScoreOutcome::Scored(score) => {
                let parts = score.breakdown.iter().map(|(name, value)| (name.as_str(), *value));
                if let Some((name, value)) = parts.chain([("total", score.score)]).find(|(_, v)| !v.is_finite()) {
                    return Ok(failed(format!("sample {sample}: reward {name:?} is {value}"), false));
                }
                scores.push(score);
            }
            ScoreOutcome::Failed { error, retryable } => return Ok(failed(format!("sample {sample}: {error}"), *retryable)),
        }
    }
    if scores.len() != batch.trajectories.len() {
        return Ok(failed(format!("{} scores for {} samples", scores.len(), batch.trajectories.len()), false));
    }
    let parts = mean_parts(&scores);
    let values = scores.iter().map(|s| s.score).collect();
    let digest = group_payload(batch, reply, advantage)?.digest;
    Ok(ScoresSummary { digest, scores: values, parts, failure: None })
}

/// What a step consumes of a group: trajectories and scores without what depends on the machine's pace or a grader's mood
/// (timings, free metadata), so that its digest is the same however often and wherever the group was generated.
pub fn group_payload(batch: &TrajectoryBatch, reply: &ScoreReply, advantage: &dyn Advantage) -> Result<ReadyGroup, CodecError> {
    let scored = |(trajectory, outcome): (&Trajectory, &ScoreOutcome)| match outcome {
        ScoreOutcome::Scored(score) => Some(ScoredTrajectory {
            trajectory: Trajectory { generate_us: 0, ..trajectory.clone() },
            score: Score { metadata_json: String::new(), ..score.clone() },
        }),
        ScoreOutcome::Failed { .. } => None,
    };
    let outcomes = reply.outcomes.iter().map(|o| &o.outcome);
    let samples = batch.trajectories.iter().zip(outcomes).filter_map(scored).collect();
    ready(batch.group, samples, advantage)
}

/// What graders see: the dialogue, never token ids.
pub fn samples_to_score(batch: &TrajectoryBatch) -> Vec<SampleToScore> {
    let sample = |t: &Trajectory| SampleToScore {
        sample: SampleIx(t.sample.0),
        turns: t.turns.clone(),
        context_json: t.context_json.clone(),
    };
    batch.trajectories.iter().map(sample).collect()
}

fn mean_parts(scores: &[&Score]) -> Vec<(String, f64)> {
    let mut parts: Vec<(String, f64, f64)> = Vec::new();
    for (name, value) in scores.iter().flat_map(|s| &s.breakdown) {
        match parts.iter_mut().find(|(n, ..)| n == name) {
            Some((_, sum, count)) => (*sum, *count) = (*sum + value, *count + 1.0),
            None => parts.push((name.clone(), *value, 1.0)),
        }
    }
    parts.into_iter().map(|(name, sum, count)| (name, sum / count)).collect()
}
