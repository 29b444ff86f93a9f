//! The sampler's log-probs, decoded from the wire, are the learner's to the bit; a single flipped bit of a weight in the
//! sampler is seen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use anyhow::{Context, Result, ensure};
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineHandle, EngineOptions};
use cohort_learner::aggregator::payload_digest;
use cohort_learner::config::TrainingConfig;
use cohort_learner::{Training, step};
use cohort_model::{DtypeKind, ModelFiles};
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::learner::{CoordinatorToLearner, StepRequest};
use cohort_protocol::messages::rollout::RolloutToCoordinator;
use cohort_protocol::{
    AttemptId, Epoch, GroupId, GroupLease, GroupPayload, LeasePurpose, PolicyVersion, SampleIx, SamplingParams, Score,
    ScoredTrajectory, StepId, StepIntent, TrajectoryBatch,
};
use cohort_rollout::environments::order_desk::Orders;
use cohort_rollout::{AgentConfig, Dataset, EnvironmentConfig, Stage, registry};
use std::sync::Arc;

const GROUPS: u64 = 48;
const SAMPLES: u16 = 8;

/// Training's own way to draw.
fn plain() -> SamplingParams {
    SamplingParams::plain(1.0, 16)
}

/// Metric of the largest one.
const DIFFERENCE: &str = "exactness/logp_difference_max";

fn engine(files: &ModelFiles, dtype: DtypeKind, threads: usize, sampling: bool) -> Result<EngineHandle> {
    let (spec, weights) = (files.spec.clone(), files.weights()?);
    let make = move || {
        let engine = NativeEngine::new(spec, threads, 256 << 20)?.of(dtype);
        let mut engine = if sampling { engine.for_sampling() } else { engine };
        engine.import(&weights)?;
        Ok(Box::new(engine) as Box<dyn Backend>)
    };
    Ok(EngineHandle::start(make, EngineOptions::default())?)
}

/// Groups as the coordinator has them: sampled by one engine, out of a frame.
async fn sampled(
    files: &ModelFiles,
    sampler: &EngineHandle,
    groups: u64,
    sampling: SamplingParams,
) -> Result<Vec<TrajectoryBatch>> {
    let agent = AgentConfig { r#type: "tool".into(), max_new_tokens: 16, ..AgentConfig::default() };
    let environment = EnvironmentConfig { max_turns: 5, ..EnvironmentConfig::default() };
    let stage = Stage {
        engine: sampler.clone(),
        agent: registry::agent(&agent, files)?,
        environment: registry::environment(&environment)?,
    };
    let orders = Orders::new(&environment, 1)?;
    let mut running = Vec::new();
    for group in (0..groups).map(GroupId) {
        let lease = Arc::new(GroupLease {
            epoch: Epoch(1),
            purpose: LeasePurpose::Train,
            group,
            attempt: AttemptId(1),
            version: PolicyVersion(0),
            follows: false,
            samples: SAMPLES,
            item: orders.train(group),
            seed: 1,
            sampling,
        });
        let tasks = (0..SAMPLES).map(|sample| {
            let (stage, lease) = (stage.clone(), lease.clone());
            tokio::spawn(async move { stage.run(&lease, SampleIx(sample), None).await })
        });
        running.push((group, tasks.collect::<Vec<_>>()));
    }
    let mut batches = Vec::new();
    for (group, tasks) in running {
        let mut trajectories = Vec::new();
        for task in tasks {
            trajectories.push(task.await??);
        }
        let (epoch, purpose, attempt) = (Epoch(1), LeasePurpose::Train, AttemptId(1));
        let message = RolloutToCoordinator::Trajectories(TrajectoryBatch { epoch, purpose, group, attempt, trajectories });
        let RolloutToCoordinator::Trajectories(batch) = RolloutToCoordinator::from_frame(&message.to_frame()?)? else {
            anyhow::bail!("a batch is decoded as something else");
        };
        batches.push(batch);
    }
    Ok(batches)
}

/// The largest difference that the learner reports for these groups in a first step, and the tokens sampled.
async fn difference(files: &ModelFiles, dtype: DtypeKind, batches: Vec<TrajectoryBatch>) -> Result<(f64, usize)> {
    let tokens = batches.iter().flat_map(|b| &b.trajectories).map(|t| t.mask.iter().filter(|&&m| m == 1).count()).sum();
    let config = TrainingConfig { groups_per_step: batches.len() as u32, group_size: SAMPLES, ..TrainingConfig::default() };
    let training = Training::try_from(&config)?;
    let payload = |batch: TrajectoryBatch| {
        let rewards: Vec<f64> = (0..SAMPLES).map(|s| f64::from(s % 2)).collect();
        let score = |&score: &f64| Score { score, breakdown: Vec::new(), metadata_json: "{}".into() };
        let samples = batch.trajectories.into_iter().zip(&rewards);
        let samples = samples.map(|(trajectory, reward)| ScoredTrajectory { trajectory, score: score(reward) }).collect();
        GroupPayload { group: batch.group, samples, advantages: training.advantage.advantages(&rewards) }
    };
    let groups: Vec<GroupPayload> = batches.into_iter().map(payload).collect();
    let digests = groups.iter().map(payload_digest).collect::<Result<Vec<_>, _>>()?;
    let ids = groups.iter().map(|g| g.group).collect();
    let intent = StepIntent { step: StepId(1), base: PolicyVersion(0), groups: ids, digests };
    let message = CoordinatorToLearner::Step(StepRequest { epoch: Epoch(1), intent, groups, replay: false, hash: false });
    let CoordinatorToLearner::Step(request) = CoordinatorToLearner::from_frame(&message.to_frame()?)? else {
        anyhow::bail!("a step is decoded as something else");
    };
    // Other numbers of threads and other batches than the sampler's.
    let learner = engine(files, dtype, 2, false)?;
    let stepped = learner.advance(1, move |e| step::run(e, &training, &request, None, &mut |_, _| ())).await?;
    let (metrics, _) = stepped.map_err(|failure| anyhow::anyhow!("{}", failure.error))?;
    let named = |name: &str| metrics.iter().find(|(n, _)| n == name).map(|(_, v)| *v).with_context(|| format!("no {name}"));
    ensure!(named("grad_norm")? > 0.0, "the step moves something");
    Ok((named(DIFFERENCE)?, tokens))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_learner_recomputes_the_samplers_bits_and_sees_one_flipped_bit() -> Result<()> {
    let files = ModelFiles::open("builtin://order-desk")?;
    // One bit of one weight in a feed-forward projection: a change of 2^-15 of it, in bf16 of 2^-7.
    for (dtype, bit) in [(DtypeKind::F32, 8), (DtypeKind::Bf16, 16)] {
        let sampler = engine(&files, dtype, 1, false)?;
        let batches = sampled(&files, &sampler, GROUPS, plain()).await?;
        let alone = sampled(&files, &engine(&files, dtype, 2, true)?, GROUPS, plain()).await?;
        assert_eq!(payloads(&batches), payloads(&alone), "an engine for sampling alone");
        let (exact, tokens) = difference(&files, dtype, batches).await?;
        assert_eq!(exact, 0.0);
        assert!(tokens >= 2_000, "{tokens} tokens were compared");
        sampler.flip_weight_bit("model.layers.1.mlp.down_proj.weight", 1234, bit).await?;
        let (flipped, _) = difference(&files, dtype, sampled(&files, &sampler, GROUPS, plain()).await?).await?;
        assert!(flipped > 0.0, "a flipped bit goes unseen in {dtype:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn penalties_and_truncation_leave_the_learners_bits_and_say_what_was_drawn_from() -> Result<()> {
    let files = ModelFiles::open("builtin://order-desk")?;
    let sampler = engine(&files, DtypeKind::F32, 2, false)?;
    let narrow = SamplingParams {
        temperature: 1.3,
        top_k: 30,
        top_p: 0.95,
        min_p: 0.02,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.1,
        ..plain()
    };
    let batches = sampled(&files, &sampler, 8, narrow).await?;
    let trajectories = || batches.iter().flat_map(|b| &b.trajectories);
    let apart =
        trajectories().flat_map(|t| t.logp.iter().zip(t.logp_sampled.iter())).filter(|(logp, drawn)| logp != drawn).count();
    assert!(apart > 100, "{apart} tokens were drawn from another distribution than the model's");
    // One left to choose from is drawn with certainty.
    let only = sampled(&files, &sampler, 1, SamplingParams { top_k: 1, ..plain() }).await?;
    assert!(only.iter().flat_map(|b| &b.trajectories).all(|t| t.logp_sampled.iter().all(|logp| *logp == 0.0)));
    let (exact, _) = difference(&files, DtypeKind::F32, batches).await?;
    assert_eq!(exact, 0.0);
    Ok(())
}

/// Tokens and log-probs, by bits.
fn payloads(batches: &[TrajectoryBatch]) -> Vec<(Vec<u32>, Vec<u32>)> {
    let all = batches.iter().flat_map(|batch| &batch.trajectories);
    all.map(|t| (t.token_ids.0.clone(), t.logp.0.iter().map(|logp| logp.to_bits()).collect())).collect()
}
