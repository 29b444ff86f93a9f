//! `cargo xtask desk-check`: whether the embedded model learns its task, in one process without the cluster around it.
//!
//! The rollout crate's own episodes, the learner's own advantages, loss and update; held-out reward before and after,
//! sampled and greedy. `--random` gives random rewards, from which nothing may be learnt.
use crate::pretrain::assets;
use anyhow::{Context, Result, ensure};
use cohort_engine::native::NativeEngine;
use cohort_engine::{Backend, EngineHandle, EngineOptions};
use cohort_learner::Training;
use cohort_learner::batching::{Plan, Sample};
use cohort_learner::collective::Solo;
use cohort_learner::config::{AdvantageConfig, AggregationConfig, LossConfig, OptimizerConfig, TrainingConfig};
use cohort_learner::schedule::Decay;
use cohort_learner::step::{Objective, update};
use cohort_model::ModelFiles;
use cohort_protocol::{
    AttemptId, Epoch, GroupId, GroupLease, LeasePurpose, PolicyVersion, SampleIx, SampledItem, SamplingParams, Score,
    ScoredTrajectory, StepId, Trajectory, TurnRole,
};
use cohort_rollout::draw::hash;
use cohort_rollout::environments::order_desk::Orders;
use cohort_rollout::{AgentConfig, Dataset, EnvironmentConfig, Stage, registry};
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seeds to train with, one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seed: Vec<u64>,
    /// Optimizer steps.
    #[arg(long, default_value_t = 120)]
    steps: u64,
    /// Groups of one step.
    #[arg(long, default_value_t = 16)]
    groups: u32,
    /// Samples of one group.
    #[arg(long, default_value_t = 8)]
    samples: u16,
    /// Peak learning rate; it falls linearly to 0.
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Random rewards.
    #[arg(long)]
    random: bool,
    /// Compute threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Directory of the model, instead of the embedded one's.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Only the held-out figures of the base.
    #[arg(long)]
    base: bool,
}

/// Tokens of one assistant turn, at most.
const MAX_NEW_TOKENS: u32 = 16;

pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    for &seed in &args.seed {
        runtime.block_on(one(args, seed))?;
    }
    Ok(())
}

async fn one(args: &Args, seed: u64) -> Result<()> {
    let dir = args.model.clone().unwrap_or_else(assets);
    let files = ModelFiles::open(dir.to_str().context("the path is not UTF-8")?)?;
    let weights = files.weights()?;
    let (spec, threads) = (files.spec.clone(), args.threads);
    let make = move || {
        let mut engine = NativeEngine::new(spec, threads, 256 << 20)?;
        engine.import(&weights)?;
        Ok(Box::new(engine) as Box<dyn Backend>)
    };
    let engine = EngineHandle::start(make, EngineOptions::default())?;
    let agent = AgentConfig { r#type: "tool".into(), max_new_tokens: MAX_NEW_TOKENS, ..AgentConfig::default() };
    let environment = EnvironmentConfig { max_turns: 5, ..EnvironmentConfig::default() };
    let stage = Stage { engine, agent: registry::agent(&agent, &files)?, environment: registry::environment(&environment)? };
    let orders = Orders::new(&environment, seed)?;
    let training = training(args, seed)?;
    let (sampled, greedy) = (heldout(&stage, &orders, seed, false).await?, heldout(&stage, &orders, seed, true).await?);
    println!("seed {seed}: before: sampled {:.3} (format {:.3}), greedy {:.3}", sampled.0, sampled.1, greedy.0);
    show(&stage, &orders, seed).await?;
    if args.base {
        return Ok(());
    }
    let started = Instant::now();
    let mut history = Vec::new();
    for step in 1..=training.steps {
        let (reward, difference) = train_step(args, &stage, &orders, &training, seed, step).await?;
        ensure!(difference == 0.0, "step {step}: log-probs of sampler and learner differ by {difference}");
        history.push(reward);
        if step % 10 == 0 {
            let recent = &history[history.len().saturating_sub(10)..];
            let mean = recent.iter().sum::<f64>() / recent.len() as f64;
            println!("  step {step:4}  reward {mean:.3}  {:5.1} s", started.elapsed().as_secs_f64());
        }
    }
    let wall = started.elapsed().as_secs_f64();
    let reached = history.windows(5).position(|w| w.iter().sum::<f64>() >= 4.5).map(|at| at + 5);
    let (sampled, greedy) = (heldout(&stage, &orders, seed, false).await?, heldout(&stage, &orders, seed, true).await?);
    println!(
        "seed {seed}: after {} steps in {wall:.1} s: sampled {:.3}, greedy {:.3}, 0.9 at {reached:?}",
        training.steps, sampled.0, greedy.0
    );
    show(&stage, &orders, seed).await
}

fn training(args: &Args, seed: u64) -> Result<Training> {
    let config = TrainingConfig {
        steps: args.steps,
        groups_per_step: args.groups,
        group_size: args.samples,
        learning_rate: args.lr,
        schedule: Decay::Linear,
        warmup_ratio: 0.0,
        max_grad_norm: 1.0,
        seed,
        advantage: AdvantageConfig::default(),
        loss: LossConfig::Grpo {
            clip_low: 0.2,
            clip_high: 0.28,
            beta: 0.0,
            entropy_coef: 0.0,
            aggregation: AggregationConfig::TokenMean,
            max_completion_length: None,
        },
        optimizer: OptimizerConfig { betas: [0.9, 0.95], weight_decay: 0.0, ..OptimizerConfig::default() },
        ..TrainingConfig::default()
    };
    Ok(Training::try_from(&config)?)
}

fn lease(item: SampledItem, group: u64, purpose: LeasePurpose, samples: u16, seed: u64) -> GroupLease {
    GroupLease {
        epoch: Epoch(1),
        purpose,
        group: GroupId(group),
        attempt: AttemptId(1),
        version: PolicyVersion(0),
        follows: false,
        samples,
        item,
        seed,
        sampling: SamplingParams {
            greedy: matches!(purpose, LeasePurpose::Eval { greedy: true, .. }),
            ..SamplingParams::plain(1.0, MAX_NEW_TOKENS)
        },
    }
}

/// All samples of all leases, in order.
async fn generate(stage: &Stage, leases: Vec<GroupLease>) -> Result<Vec<Vec<Trajectory>>> {
    let mut tasks = Vec::new();
    for lease in leases {
        let lease = std::sync::Arc::new(lease);
        let samples = (0..lease.samples).map(|sample| {
            let (stage, lease) = (stage.clone(), lease.clone());
            tokio::task::spawn(async move { stage.run(&lease, SampleIx(sample), None).await })
        });
        tasks.push(samples.collect::<Vec<_>>());
    }
    let mut out = Vec::new();
    for samples in tasks {
        let mut group = Vec::new();
        for sample in samples {
            group.push(sample.await??);
        }
        out.push(group);
    }
    Ok(out)
}

fn verdict(trajectory: &Trajectory, key: &str) -> Result<f64> {
    let context: serde_json::Value = serde_json::from_str(&trajectory.context_json)?;
    context[key].as_f64().with_context(|| format!("no {key} in {}", trajectory.context_json))
}

/// Mean of correct and of format over the held-out orders.
async fn heldout(stage: &Stage, orders: &Orders, seed: u64, greedy: bool) -> Result<(f64, f64)> {
    let purpose = LeasePurpose::Eval { step: 0, greedy };
    let leases = (0..orders.heldout_len()).map(|i| lease(orders.heldout(i), i, purpose, 1, seed)).collect();
    let groups = generate(stage, leases).await?;
    let n = groups.len() as f64;
    let mean = |key: &str| groups.iter().flatten().map(|t| verdict(t, key)).sum::<Result<f64>>().map(|sum| sum / n);
    Ok((mean("correct")?, mean("format")?))
}

/// One held-out dialogue, greedily.
async fn show(stage: &Stage, orders: &Orders, seed: u64) -> Result<()> {
    let purpose = LeasePurpose::Eval { step: 0, greedy: true };
    let groups = generate(stage, vec![lease(orders.heldout(0), 0, purpose, 1, seed)]).await?;
    for trajectory in groups.iter().flatten() {
        for turn in trajectory.turns.iter().filter(|turn| turn.role != TurnRole::System) {
            println!("    {:?}: {}", turn.role, turn.content);
        }
        println!("    {} tokens, {}", trajectory.len(), trajectory.context_json);
    }
    Ok(())
}

/// Mean reward, and the largest difference between the sampler's and the learner's log-probs.
async fn train_step(
    args: &Args,
    stage: &Stage,
    orders: &Orders,
    training: &Training,
    seed: u64,
    step: u64,
) -> Result<(f64, f64)> {
    let per_step = u64::from(args.groups);
    let ids = (step - 1) * per_step..step * per_step;
    let leases = ids.map(|g| lease(orders.train(GroupId(g)), g, LeasePurpose::Train, args.samples, seed)).collect();
    let (mut samples, mut total, mut count) = (Vec::new(), 0.0, 0.0);
    for group in generate(stage, leases).await? {
        let reward = |t: &Trajectory| match args.random {
            true => Ok((hash(&[seed, t.group.0, u64::from(t.sample.0), 9]) & 1) as f64),
            false => verdict(t, "correct"),
        };
        let rewards = group.iter().map(reward).collect::<Result<Vec<_>>>()?;
        total += rewards.iter().sum::<f64>();
        count += rewards.len() as f64;
        let advantages = training.advantage.advantages(&rewards);
        for (trajectory, (score, advantage)) in group.into_iter().zip(rewards.into_iter().zip(advantages)) {
            let score = Score { score, breakdown: Vec::new(), metadata_json: "{}".into() };
            samples.push(Sample::from_trajectory(&ScoredTrajectory { trajectory, score }, advantage, PolicyVersion(step - 1)));
        }
    }
    let plan = Plan::new(samples, training.packing);
    let training = training.clone();
    let updated = stage
        .engine
        .advance(step, move |engine| {
            let objective = Objective {
                loss: training.loss.as_ref(),
                optimizer: training.optimizer,
                learning_rate: training.learning_rate(StepId(step), 0),
                max_grad_norm: training.max_grad_norm,
                compare: true,
                draws: 0,
            };
            update(engine, &plan, &objective, None, None, &mut Solo, &mut |_| ())
        })
        .await?;
    let metrics = updated?.0.finish();
    let difference = metrics.iter().find(|(name, _)| name == "exactness/logp_difference_max").map_or(0.0, |(_, v)| *v);
    Ok((total / count, difference))
}
