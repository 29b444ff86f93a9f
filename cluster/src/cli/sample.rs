//! `cluster sample`: groups of training prompts, generated and scored, into a file: rollout without a learner. The groups are
//! those that a run of the same configuration would begin with, to the bit; `cluster learn` trains on them.
use super::graded::{Graded, group};
use super::open::runtime;
use super::overrides::ConfigArgs;
use super::{CliError, Exit, json_line};
use crate::run::wiring::Wiring;
use cohort_learner::training::Training;
use cohort_protocol::export::{GroupJson, TrajectoryJson};
use cohort_protocol::{AttemptId, Epoch, GroupId, GroupLease, LeasePurpose, PolicyVersion, RunId, ScoredTrajectory};
use cohort_reward_workers::Registry;
use cohort_rollout::{Dataset, Stage, registry};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinSet;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration files, later ones over earlier ones [default: the embedded order desk]
    #[arg(value_name = "CONFIG")]
    files: Vec<PathBuf>,
    /// Set one key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// How many groups
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    groups: u64,
    /// First group, counted from 0 along the data
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: u64,
    /// File of the groups, one a line of JSON; it is there once all are
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the report as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    out: PathBuf,
    groups: u64,
    samples: u64,
    sampled_tokens: u64,
    reward: f64,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let said = ConfigArgs { files: args.files.clone(), sets: args.sets.clone(), ..ConfigArgs::default() };
    let config = Arc::new(said.resolve()?.config);
    let wiring = Wiring::open(config.clone(), RunId(0), Path::new("."))?;
    wiring.check()?;
    let stage = Stage {
        engine: wiring.engine()?,
        agent: registry::agent(&config.agent, &wiring.files)?,
        environment: registry::environment(&config.environment)?,
    };
    let training = Training::try_from(&config.training).map_err(|e| CliError::new(Exit::Usage, e))?;
    let partial = args.out.with_extension("partial");
    let file = File::create(&partial).map_err(|e| CliError::io("write", &partial, &e))?;
    let runtime = runtime()?;
    runtime.block_on(stage.engine.load(0, wiring.files.weights()?))?;
    let mut sampling =
        Sampling { wiring: &wiring, stage, training, data: wiring.dataset()?, file: BufWriter::new(file), path: &partial };
    let (samples, sampled_tokens, total) = runtime.block_on(sampling.groups(args.skip..args.skip.saturating_add(args.groups)))?;
    sampling.file.flush().map_err(|e| CliError::io("write", &partial, &e))?;
    std::fs::rename(&partial, &args.out).map_err(|e| CliError::io("write", &args.out, &e))?;
    let reward = total / samples.max(1) as f64;
    let report = Report { out: args.out.clone(), groups: args.groups, samples, sampled_tokens, reward };
    if args.json {
        json_line(out, &report)?;
    } else {
        writeln!(out, "{} groups, mean reward {reward:.4} over {samples} samples, in {}", report.groups, args.out.display())?;
    }
    Ok(Exit::Success)
}

struct Sampling<'a> {
    wiring: &'a Wiring,
    stage: Stage,
    training: Training,
    data: Arc<dyn Dataset>,
    file: BufWriter<File>,
    path: &'a Path,
}

impl Sampling<'_> {
    /// Writes the groups in order, as many of them under way as a rollout worker takes. Samples, sampled tokens and the sum
    /// of their rewards.
    async fn groups(&mut self, ids: std::ops::Range<u64>) -> Result<(u64, u64, f64), CliError> {
        let reward = Registry::builtin().build(&self.wiring.config.rewards)?;
        let capacity = usize::from(self.wiring.config.cluster.capacity.get());
        let (mut running, mut done) = (JoinSet::new(), BTreeMap::<u64, Graded>::new());
        let (mut next, mut begin) = (ids.start, ids.clone());
        let mut totals = (0, 0, 0.0);
        loop {
            while running.len() < capacity {
                let Some(id) = begin.next() else { break };
                let (stage, reward, lease) = (self.stage.clone(), reward.clone(), self.lease(id));
                running.spawn(async move { (id, group(stage, lease, reward).await) });
            }
            let Some(ended) = running.join_next().await else { return Ok(totals) };
            let (id, graded) = ended.map_err(|e| CliError::new(Exit::Internal, e))?;
            done.insert(id, graded.map_err(|e| CliError { message: format!("group {id}: {e}"), ..e })?);
            while let Some(graded) = done.remove(&next) {
                totals.0 += graded.scores.len() as u64;
                totals.1 += graded.trajectories.iter().map(|t| t.completion_len() as u64).sum::<u64>();
                totals.2 += graded.scores.iter().map(|s| s.score).sum::<f64>();
                self.write(next, graded)?;
                next += 1;
            }
        }
    }

    fn write(&mut self, id: u64, graded: Graded) -> Result<(), CliError> {
        let rewards: Vec<f64> = graded.scores.iter().map(|s| s.score).collect();
        let advantages = self.training.advantage.advantages(&rewards);
        let scored =
            graded.trajectories.into_iter().zip(graded.scores).map(|(trajectory, score)| ScoredTrajectory { trajectory, score });
        let trajectories = scored.zip(advantages).map(|(s, a)| TrajectoryJson::new(&s, Some(a))).collect();
        let item = self.data.train(GroupId(id));
        let item = serde_json::from_str(&item.json).map_err(|e| CliError::new(Exit::Data, format!("row {}: {e}", item.row)))?;
        json_line(&mut self.file, &GroupJson { group_id: id, step: 0, item, trajectories })
            .map_err(|e| CliError { message: format!("{}: {e}", self.path.display()), ..e })
    }

    fn lease(&self, id: u64) -> GroupLease {
        let config = &self.wiring.config;
        GroupLease {
            epoch: Epoch(0),
            purpose: LeasePurpose::Train,
            group: GroupId(id),
            attempt: AttemptId(1),
            version: PolicyVersion(0),
            follows: false,
            samples: config.training.group_size,
            item: self.data.train(GroupId(id)),
            seed: config.training.seed,
            sampling: config.agent.sampling(),
        }
    }
}
