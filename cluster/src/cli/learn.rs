//! `cluster learn FILE`: steps on the groups of a file, as `cluster sample` writes them: a learner without rollout workers.
//!
//! The groups were all drawn from the model that training begins with, so that from the second step on they are stale; with a
//! `training.correction` the loss says so. The first step is that of a run, to the bit.
use super::jsonl::{self, Place};
use super::open::runtime;
use super::overrides::ConfigArgs;
use super::{CliError, Exit, json_line};
use crate::run::wiring::Wiring;
use cohort_engine::HeldRing;
use cohort_learner::aggregator::{ReadyGroup, ready};
use cohort_learner::jobs::Workshop;
use cohort_learner::sinks::{JsonlSink, Record, Sink};
use cohort_learner::state::{Job, Outcome};
use cohort_learner::training::Training;
use cohort_protocol::export::GroupJson;
use cohort_protocol::messages::learner::{CheckpointRequest, Load, LoadFrom, StepRequest};
use cohort_protocol::{Epoch, GroupId, PolicyVersion, RunId, SampleIx, StepCommit, StepId, StepIntent};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Groups, one a line of JSON, as `cluster sample` writes them
    groups: PathBuf,
    /// Configuration files, later ones over earlier ones [default: the embedded order desk]
    #[arg(value_name = "CONFIG")]
    files: Vec<PathBuf>,
    /// Set one key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Steps to take (training.steps)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<i64>,
    /// Where metrics and the checkpoint are written; a folder that is not there yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Print the report as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    out: PathBuf,
    steps: u64,
    groups_left: usize,
    checkpoint: String,
    weights_sha256: String,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let (files, sets) = (args.files.clone(), args.sets.clone());
    let said = ConfigArgs { files, sets, steps: args.steps, ..ConfigArgs::default() };
    let config = Arc::new(said.resolve()?.config);
    let training = Training::try_from(&config.training).map_err(|e| CliError::new(Exit::Usage, e))?;
    let mut groups = read(args, &training)?;
    let wanted = training.steps.saturating_mul(training.groups_per_step as u64);
    if (groups.len() as u64) < wanted {
        let why = format!(
            "{} has {} groups, {} steps of {} take {wanted}: sample more, or set --steps",
            args.groups.display(),
            groups.len(),
            training.steps,
            training.groups_per_step
        );
        return Err(CliError::new(Exit::Data, why));
    }
    if args.out.exists() {
        return Err(CliError::new(Exit::RunDirectory, format!("{} is there already: name another folder", args.out.display())));
    }
    let wiring = Wiring::open(config, RunId(0), &args.out)?;
    let shop = Arc::new(Workshop {
        engine: wiring.learning_engine()?,
        reference: wiring.reference()?,
        ring: Arc::new(HeldRing::new(1)),
        training: training.clone(),
        model: wiring.files.clone(),
        run_dir: args.out.clone(),
        micro_batches: Arc::new(AtomicU64::new(0)),
        team: None,
        losses: AtomicU32::default(),
    });
    std::fs::create_dir_all(&args.out).map_err(|e| CliError::io("make", &args.out, &e))?;
    let mut metrics = JsonlSink::open(&args.out.join("metrics.jsonl")).map_err(|e| CliError::new(Exit::Io, e))?;
    let left = groups.split_off(usize::try_from(wanted).unwrap_or(usize::MAX).min(groups.len())).len();
    let (last, checkpoint) = runtime()?.block_on(async {
        job(&shop, Job::Load(Load { epoch: Epoch(0), from: LoadFrom::Base, version: PolicyVersion(0) })).await?;
        let mut last = None;
        for (step, groups) in (1..).map(StepId).zip(chunks(groups, training.groups_per_step)) {
            let request = request(step, groups, step.0 == training.steps);
            let Outcome::Stepped(commit) = job(&shop, Job::Step(request)).await? else { continue };
            progress(&commit);
            let record = Record { step, metrics: commit.metrics.clone() };
            metrics.record(&record).map_err(|e| CliError::new(Exit::Io, e))?;
            last = Some(commit);
        }
        let (version, cursor_json) = (PolicyVersion(training.steps), serde_json::json!({ "next_group": wanted }).to_string());
        let save = CheckpointRequest { epoch: Epoch(0), version, cursor_json };
        let Outcome::Saved { dir, .. } = job(&shop, Job::Checkpoint(save)).await? else { return Ok((last, String::new())) };
        Ok::<_, CliError>((last, dir))
    })?;
    let report = Report {
        out: args.out.clone(),
        steps: training.steps,
        groups_left: left,
        checkpoint,
        weights_sha256: last.map(|commit| commit.weights_sha256).unwrap_or_default(),
    };
    if args.json {
        json_line(out, &report)?;
    } else {
        writeln!(out, "{} steps, {left} groups left over; weights {}", report.steps, report.weights_sha256)?;
        writeln!(out, "{}", args.out.join(&report.checkpoint).display())?;
    }
    Ok(Exit::Success)
}

/// The file's groups, checked, with the advantages of this configuration.
fn read(args: &Args, training: &Training) -> Result<Vec<ReadyGroup>, CliError> {
    let rows: Vec<(Place, GroupJson)> = jsonl::read(&args.groups)?;
    let mut groups = Vec::with_capacity(rows.len());
    for (place, row) in rows {
        let id = GroupId(row.group_id);
        if row.trajectories.len() != training.group_size {
            let (found, wanted) = (row.trajectories.len(), training.group_size);
            return Err(place.error(format!("group {id} has {found} samples, training.group_size is {wanted}")));
        }
        let scored = (0..).map(SampleIx).zip(row.trajectories).map(|(sample, t)| t.into_scored(id, sample));
        let samples: Vec<_> = scored.collect();
        for sample in &samples {
            sample.trajectory.validate().map_err(|e| place.error(e))?;
        }
        groups.push(ready(id, samples, training.advantage.as_ref()).map_err(|e| place.error(e))?);
    }
    Ok(groups)
}

/// `count` groups at a time, in the file's order.
fn chunks(groups: Vec<ReadyGroup>, count: usize) -> impl Iterator<Item = Vec<ReadyGroup>> {
    let mut groups = groups.into_iter();
    std::iter::from_fn(move || Some(groups.by_ref().take(count).collect::<Vec<_>>()).filter(|chunk| !chunk.is_empty()))
}

fn request(step: StepId, groups: Vec<ReadyGroup>, hash: bool) -> StepRequest {
    let (ids, digests) = groups.iter().map(|g| (g.payload.group, g.digest.clone())).unzip();
    let intent = StepIntent { step, base: PolicyVersion(step.0 - 1), groups: ids, digests };
    StepRequest { epoch: Epoch(0), intent, groups: groups.into_iter().map(|g| g.payload).collect(), replay: false, hash }
}

async fn job(shop: &Arc<Workshop>, job: Job) -> Result<Outcome, CliError> {
    match shop.clone().run(job).await {
        Outcome::Failed(failure) => Err(CliError::new(Exit::Compute, failure.error)),
        outcome => Ok(outcome),
    }
}

fn progress(commit: &StepCommit) {
    let get = |name: &str| commit.metrics.iter().find(|(n, _)| n == name).map_or(f64::NAN, |(_, v)| *v);
    // For people; where stderr is closed nobody misses it.
    let _ = writeln!(std::io::stderr(), "step {:>5}  reward {:.3}  loss {:+.5}", commit.step, get("reward"), get("loss"));
}
