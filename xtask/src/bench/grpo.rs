//! One whole GRPO step: 2 prompts of 43 tokens x 8 completions of exactly 64 tokens, then the learner's step.
use super::decode::draw;
use super::{Subject, age, median, peak_mib, since};
use anyhow::Result;
use cohort_engine::{Completion, Decoding, EngineHandle};
use cohort_learner::advantage;
use cohort_learner::aggregator::payload_digest;
use cohort_learner::config::{AdvantageConfig, TrainingConfig};
use cohort_learner::training::Training;
use cohort_protocol::messages::learner::StepRequest;
use cohort_protocol::{
    Epoch, FinishReason, GroupId, GroupPayload, PolicyVersion, SampleIx, Score, ScoredTrajectory, StepId, StepIntent, Trajectory,
    Turn, TurnRole, VersionSpan,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

const PROMPTS: usize = 2;
const SAMPLES: usize = 8;
const PROMPT: usize = 43;
const NEW: u32 = 64;

/// Seconds of sampling plus learning, in one process with one engine.
pub(crate) async fn step(subject: &Subject) -> Result<Value> {
    let config = TrainingConfig { group_size: SAMPLES as u16, groups_per_step: PROMPTS as u32, ..TrainingConfig::default() };
    let engine = subject.recording_engine(config.reuse_sampling_mb as usize)?;
    let training = Arc::new(Training::try_from(&config)?);
    let prompts: Vec<Vec<u32>> =
        subject.prompts(PROMPTS, PROMPT).into_iter().flat_map(|p| std::iter::repeat_n(p, SAMPLES)).collect();
    let (mut whole, mut sampling, mut recalled) = (Vec::new(), Vec::new(), 0.0);
    let mut first = f64::NAN;
    for run in 0..=subject.runs as u64 {
        let start = Instant::now();
        let done = draw(&engine, &prompts, |key| Decoding::plain(1.0, NEW, key), run).await?;
        let sampled = since(start);
        recalled = learn(&engine, &training, request(run, &prompts, &done)?).await?;
        if run == 0 {
            first = age();
        } else {
            whole.push(since(start));
            sampling.push(sampled);
        }
    }
    let (step, sampling) = (median(whole), median(sampling));
    Ok(
        json!({ "step_s": step, "sampling_s": sampling, "start_to_first_step_s": first, "recalled_tokens": recalled, "peak_mib": peak_mib() }),
    )
}

/// Tokens whose forward pass sampling had computed already.
async fn learn(engine: &EngineHandle, training: &Arc<Training>, request: StepRequest) -> Result<f64> {
    let training = training.clone();
    let version = request.intent.step.0;
    let stepped = engine
        .advance(version, move |backend| cohort_learner::step::run(backend, &training, &request, None, &mut |_, _| ()))
        .await?;
    let (metrics, _) = stepped.map_err(|failure| anyhow::anyhow!("{}", failure.error))?;
    Ok(metrics.iter().find(|(name, _)| name == "perf/recalled_tokens").map_or(0.0, |(_, tokens)| *tokens))
}

fn request(run: u64, prompts: &[Vec<u32>], done: &[Completion]) -> Result<StepRequest> {
    let rule = advantage::build(&AdvantageConfig::default(), true);
    let mut groups = Vec::new();
    for g in 0..PROMPTS {
        let rewards: Vec<f64> = (0..SAMPLES).map(|s| (s % 2) as f64).collect();
        let samples = (0..SAMPLES).map(|s| scored(g, s, &prompts[g * SAMPLES + s], &done[g * SAMPLES + s], rewards[s])).collect();
        groups.push(GroupPayload { group: GroupId(g as u64), samples, advantages: rule.advantages(&rewards) });
    }
    let digests = groups.iter().map(payload_digest).collect::<Result<Vec<_>, _>>()?;
    let intent =
        StepIntent { step: StepId(run + 1), base: PolicyVersion(run), groups: groups.iter().map(|g| g.group).collect(), digests };
    Ok(StepRequest { epoch: Epoch(1), intent, groups, replay: false, hash: false })
}

fn scored(group: usize, sample: usize, prompt: &[u32], done: &Completion, reward: f64) -> ScoredTrajectory {
    let pad = |values: &[f32]| -> Vec<f32> { std::iter::repeat_n(0.0, prompt.len()).chain(values.iter().copied()).collect() };
    let tokens: Vec<u32> = prompt.iter().chain(&done.tokens).copied().collect();
    let mask = (0..tokens.len()).map(|t| u8::from(t >= prompt.len())).collect();
    let exact = done.spans.iter().all(|span| span.exact);
    let span = VersionSpan { start: prompt.len() as u32, len: done.tokens.len() as u32, version: PolicyVersion(0), exact };
    let trajectory = Trajectory {
        group: GroupId(group as u64),
        sample: SampleIx(sample as u16),
        token_ids: tokens.into(),
        mask,
        logp: pad(&done.logp).into(),
        logp_sampled: pad(&done.logp_sampled).into(),
        spans: vec![span],
        temperature: 1.0,
        turns: vec![Turn::text(TurnRole::Assistant, "")],
        finish: FinishReason::Length,
        generate_us: 0,
        context_json: "{}".into(),
    };
    ScoredTrajectory { trajectory, score: Score { score: reward, breakdown: Vec::new(), metadata_json: "{}".into() } }
}
