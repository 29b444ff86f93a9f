//! The sampler's log-probs, decoded from the wire, are the learner's to the bit; a single flipped bit of a weight in the
//! sampler is seen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
use anyhow::{Context, Result, ensure};
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineHandle, EngineOptions};
use cohort_learner::aggregator::payload_digest;
use cohort_learner::config::TrainingConfig;
use cohort_learner::{Training, step};
use cohort_model::ModelFiles;
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
const DIFFERENCE: &str = "exactness/logp_difference_max";

fn engine(files: &ModelFiles, threads: usize) -> Result<EngineHandle> {
    let (spec, weights) = (files.spec.clone(), files.weights()?);
    let make = move || {
        let mut engine = NativeEngine::new(spec, threads, 256 << 20)?;
        engine.import(&weights)?;
        Ok(Box::new(engine) as Box<dyn Backend>)
    };
    Ok(EngineHandle::start(make, EngineOptions::default())?)
}

/// Groups as the coordinator has them: sampled by one engine, out of a frame.
async fn sampled(files: &ModelFiles, sampler: &EngineHandle) -> Result<Vec<TrajectoryBatch>> {
    let agent = AgentConfig { r#type: "tool".into(), max_new_tokens: 16, ..AgentConfig::default() };
    let environment = EnvironmentConfig { max_turns: 5, ..EnvironmentConfig::default() };
    let stage = Stage {
        engine: sampler.clone(),
        agent: registry::agent(&agent, files)?,
        environment: registry::environment(&environment)?,
    };
    let orders = Orders::new(&environment, 1)?;
    let mut groups = Vec::new();
    for group in (0..GROUPS).map(GroupId) {
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
            sampling: SamplingParams { temperature: 1.0, greedy: false, max_new_tokens: 16 },
        });
        let tasks = (0..SAMPLES).map(|sample| {
            let (stage, lease) = (stage.clone(), lease.clone());
            tokio::spawn(async move { stage.run(&lease, SampleIx(sample), None).await })
        });
        groups.push((group, tasks.collect::<Vec<_>>()));
    }
    let mut batches = Vec::new();
    for (group, tasks) in groups {
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
async fn difference(files: &ModelFiles, batches: Vec<TrajectoryBatch>) -> Result<(f64, usize)> {
    let tokens = batches.iter().flat_map(|b| &b.trajectories).map(|t| t.mask.iter().filter(|&&m| m == 1).count()).sum();
    let config = TrainingConfig { groups_per_step: GROUPS as u32, group_size: SAMPLES, ..TrainingConfig::default() };
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
    let learner = engine(files, 2)?;
    let stepped = learner.advance(1, move |e| step::run(e, &training, &request, None, &mut |_, _| ())).await?;
    let (metrics, _) = stepped.map_err(|failure| anyhow::anyhow!("{}", failure.error))?;
    let named = |name: &str| metrics.iter().find(|(n, _)| n == name).map(|(_, v)| *v).with_context(|| format!("no {name}"));
    ensure!(named("grad_norm")? > 0.0, "the step moves something");
    Ok((named(DIFFERENCE)?, tokens))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_learner_recomputes_the_samplers_bits_and_sees_one_flipped_bit() -> Result<()> {
    let files = ModelFiles::open("builtin://order-desk")?;
    let sampler = engine(&files, 1)?;
    let (exact, tokens) = difference(&files, sampled(&files, &sampler).await?).await?;
    assert_eq!(exact, 0.0);
    assert!(tokens >= 2_000, "{tokens} tokens were compared");
    // The lowest bit but eight of one weight in a feed-forward projection: a change of 2^-15 of it.
    sampler.flip_weight_bit("model.layers.1.mlp.down_proj.weight", 1234, 8).await?;
    let (flipped, _) = difference(&files, sampled(&files, &sampler).await?).await?;
    assert!(flipped > 0.0, "a flipped bit goes unseen");
    Ok(())
}
