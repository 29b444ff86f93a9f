//! `cluster evaluate CHECKPOINT`: its reward on held-out prompts, or a talk with it.
//!
//! A round draws as the run's own evaluation after that step does, so the figures are the same.
use super::graded::{Graded, group};
use super::hash::resolve;
use super::open::runtime;
use super::sampling::SamplingArgs;
use super::summary::{shown, turns};
use super::{CliError, Exit, json_line};
use crate::config::tree::Value;
use crate::config::{Config, Inputs, Resolved};
use crate::ledger::RunPaths;
use crate::progress::{EvaluationReport, ExampleDialogue};
use crate::run::wiring::Wiring;
use cohort_actors::confine::Confiner;
use cohort_model::Quantization;
use cohort_model::lora::is_adapter;
use cohort_protocol::{
    AttemptId, Epoch, GroupId, GroupLease, LeasePurpose, PolicyVersion, RunId, SampleIx, SampledItem, SamplingParams, Turn,
    TurnRole,
};
use cohort_reward_workers::{Registry, Reward};
use cohort_rollout::{Stage, registry};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Episodes under way at once.
const EPISODES: usize = 256;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Checkpoint directory, a run directory (its newest checkpoint), or any model path
    checkpoint: String,
    /// Configuration files [default: the run's own, if the checkpoint lies in a run directory]
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Set one key of the configuration
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Held-out prompts [default: training.eval.prompts]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    prompts: Option<u64>,
    /// Samples of each prompt [default: training.eval.samples]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    samples: Option<u16>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Number format of the products of sampling: none (as model.dtype) or int8 [default: rollout.quantization]
    #[arg(long, value_name = "FORMAT")]
    quantization: Option<Quantization>,
    /// Say this to the policy and print its answer
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompts", "samples", "interactive"])]
    message: Option<String>,
    /// Talk with the policy
    #[arg(long, conflicts_with_all = ["prompts", "samples"])]
    interactive: bool,
    /// Print the report as one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    checkpoint: String,
    weights_sha256: String,
    prompts: usize,
    samples: u16,
    heldout: f64,
    heldout_greedy: f64,
    parts: BTreeMap<String, f64>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let (model, step) = model(&args.checkpoint)?;
    let resolved = configuration(args, &model)?;
    let mut config = resolved.config.clone();
    if is_adapter(Path::new(&model)) {
        // The checkpoint brings its adapters' settings with it.
        config.model.lora = None;
    }
    let wiring = Wiring::open(Arc::new(config), RunId(0), Path::new(&model))?;
    let weights = wiring.files.start(wiring.config.training.seed)?;
    let sha256 = weights.sha256();
    let stage = Stage {
        engine: wiring.sampling_engine()?,
        agent: registry::agent(&wiring.config.agent, &wiring.files)?,
        environment: registry::environment(&wiring.config.environment)?,
    };
    let runtime = runtime()?;
    runtime.block_on(stage.engine.load(step, weights))?;
    let mut session = Session { config: wiring.config.clone(), step, stage, out };
    if args.message.is_some() || args.interactive {
        return runtime.block_on(session.talk(args));
    }
    let report = runtime.block_on(session.rounds(args, &wiring))?;
    let (sampled, greedy) = report;
    let report = Report {
        checkpoint: model,
        weights_sha256: sha256,
        prompts: sampled.per_prompt.len(),
        samples: sampled.samples,
        heldout: sampled.reward,
        heldout_greedy: greedy.reward,
        parts: sampled.parts.iter().cloned().collect(),
    };
    if args.json {
        json_line(session.out, &report)?
    } else {
        text(&report, sampled.example.as_ref(), session.out)?
    }
    Ok(Exit::Success)
}

/// The model path, and the step of a checkpoint (0 for a model that is none).
fn model(checkpoint: &str) -> Result<(String, u64), CliError> {
    let path = Path::new(checkpoint);
    if checkpoint.contains("://") || path.is_file() {
        return Ok((checkpoint.to_owned(), 0));
    }
    let dir = resolve(path)?;
    if dir.join("manifest.json").is_file() {
        cohort_learner::checkpoint::verify(&dir)?;
    }
    let step = dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse().ok());
    Ok((dir.display().to_string(), step.unwrap_or(0)))
}

/// The run directory that a checkpoint lies in.
fn run_of(model: &str) -> Option<PathBuf> {
    let run = Path::new(model).parent().and_then(Path::parent)?;
    RunPaths::new(run).config().is_file().then(|| run.to_owned())
}

fn configuration(args: &Args, model: &str) -> Result<Resolved, CliError> {
    let run = run_of(model).map(|run| RunPaths::new(&run).config());
    let files = match run.filter(|_| args.config.is_empty()) {
        Some(config) => vec![config],
        None if args.config.is_empty() && !model.starts_with("builtin://") => {
            let why = format!("{model} does not lie in a run directory; name the configuration with --config FILE");
            return Err(CliError::new(Exit::Usage, why));
        }
        None => args.config.clone(),
    };
    let mut flags = vec![("model.path".to_owned(), Value::String(model.to_owned()), format!("evaluate {}", args.checkpoint))];
    flags.extend(args.sampling.flags());
    let quantization = args.quantization.map(Quantization::name);
    flags.extend(
        quantization
            .map(|name| ("rollout.quantization".to_owned(), Value::String(name.to_owned()), format!("--quantization {name}"))),
    );
    Ok(Resolved::load(&Inputs { files, sets: args.sets.clone(), flags, ..Inputs::default() })?)
}

struct Session<'a> {
    config: Arc<Config>,
    step: u64,
    stage: Stage,
    out: &'a mut dyn Write,
}

impl Session<'_> {
    /// The sampled round and the greedy one.
    async fn rounds(&self, args: &Args, wiring: &Wiring) -> Result<(EvaluationReport, EvaluationReport), CliError> {
        let data = wiring.dataset()?;
        let eval = &self.config.training.eval;
        let wanted = args.prompts.or((eval.prompts > 0).then_some(eval.prompts.into())).unwrap_or(u64::MAX);
        let prompts = wanted.min(data.heldout_len());
        if prompts == 0 {
            return Err(CliError::new(Exit::Data, "no held-out prompts: raise environment.heldout"));
        }
        let items: Vec<SampledItem> = (0..prompts).map(|i| data.heldout(i)).collect();
        // Programs of users do not see the run that the checkpoint lies in.
        let confiner = run_of(&self.config.model.path).iter().fold(Confiner::default(), |all, run| all.hiding(run));
        let reward = Registry::confining(&confiner).build(&self.config.rewards)?;
        let samples = args.samples.unwrap_or(eval.samples).max(1);
        let sampled = self.round(&items, samples, false, &reward).await?;
        Ok((sampled, self.round(&items, 1, true, &reward).await?))
    }

    async fn round(
        &self,
        items: &[SampledItem],
        samples: u16,
        greedy: bool,
        reward: &Arc<dyn Reward>,
    ) -> Result<EvaluationReport, CliError> {
        let mut running = JoinSet::new();
        let mut graded: Vec<Option<Graded>> = items.iter().map(|_| None).collect();
        let mut next = items.iter().enumerate();
        loop {
            while running.len() < (EPISODES / usize::from(samples)).max(1) {
                let Some((i, item)) = next.next() else { break };
                let (stage, reward) = (self.stage.clone(), reward.clone());
                let lease = self.lease(i as u64, item.clone(), samples, greedy);
                running.spawn(async move { (i, group(stage, lease, reward).await) });
            }
            let Some(done) = running.join_next().await else { break };
            let (i, result) = done.map_err(|e| CliError::new(Exit::Internal, e))?;
            graded[i] = Some(result.map_err(|e| CliError { message: format!("held-out prompt {i}: {e}"), ..e })?);
        }
        Ok(summarize(self.step, greedy, samples, graded.into_iter().flatten().collect()))
    }

    fn lease(&self, index: u64, item: SampledItem, samples: u16, greedy: bool) -> GroupLease {
        GroupLease {
            epoch: Epoch(0),
            purpose: LeasePurpose::Eval { step: self.step, greedy },
            group: GroupId(index),
            attempt: AttemptId(1),
            version: PolicyVersion(self.step),
            follows: false,
            samples,
            item,
            seed: self.config.training.seed,
            sampling: SamplingParams { greedy, ..self.config.agent.sampling() },
        }
    }

    /// One message, or a talk until the end of the input. Decoding is greedy.
    async fn talk(&mut self, args: &Args) -> Result<Exit, CliError> {
        let mut history: Vec<Turn> = Vec::new();
        if let Some(message) = &args.message {
            let said = self.say(message, &mut history, 0).await?;
            match args.json {
                true => json_line(self.out, &json!({ "turns": said, "text": last_text(&said) }))?,
                false => turns(&said, "", self.out)?,
            }
            return Ok(Exit::Success);
        }
        let stdin = std::io::stdin();
        let asks = stdin.is_terminal();
        for number in 0.. {
            if asks {
                // A prompt for people; where stderr is closed nobody misses it.
                let _ = write!(std::io::stderr(), "  user  ");
            }
            let mut message = String::new();
            if stdin.lock().read_line(&mut message).map_err(|e| CliError::new(Exit::Io, e))? == 0 {
                break;
            }
            if message.trim().is_empty() {
                continue;
            }
            let said = self.say(message.trim(), &mut history, number).await?;
            match args.json {
                true => json_line(self.out, &json!({ "turns": said, "text": last_text(&said) }))?,
                false => turns(&said, "", self.out)?,
            }
            self.out.flush()?;
        }
        Ok(Exit::Success)
    }

    /// What the policy answers, tool calls included. Where the environment takes messages, the talk goes on from `history`.
    async fn say(&self, message: &str, history: &mut Vec<Turn>, number: u64) -> Result<Vec<Turn>, CliError> {
        let keeps = self.config.environment.r#type != "order_desk";
        if !keeps {
            history.clear();
        }
        history.push(Turn::text(TurnRole::User, message));
        let row = match keeps {
            true => json!({ "messages": history }),
            false => json!({ "prompt": message, "order": order_number(message)? }),
        };
        let lease = self.lease(number, SampledItem { row: number, json: row.to_string() }, 1, true);
        let trajectory = self.stage.run(&lease, SampleIx(0), None).await?;
        let before = trajectory.turns.iter().rposition(|t| t.role == TurnRole::User).map_or(0, |i| i + 1);
        let said: Vec<Turn> = trajectory.turns.into_iter().skip(before).collect();
        history.extend(said.iter().cloned());
        Ok(said)
    }
}

fn last_text(said: &[Turn]) -> &str {
    said.iter().rev().find(|t| t.role == TurnRole::Assistant).map_or("", |t| &t.content)
}

/// The order desk answers questions about an order: its number must be in the message.
fn order_number(message: &str) -> Result<&str, CliError> {
    let digits = |c: char| c.is_ascii_digit();
    let number = message.split(|c| !digits(c)).find(|part| part.len() == 4);
    number.ok_or_else(|| CliError::new(Exit::Data, "the order desk knows orders: name one, as \"What does order 4821 come to?\""))
}

fn summarize(step: u64, greedy: bool, samples: u16, graded: Vec<Graded>) -> EvaluationReport {
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, n) = values.fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
        sum / f64::from(n.max(1))
    };
    let mut parts: Vec<(String, Vec<f64>)> = Vec::new();
    for (name, value) in graded.iter().flat_map(|g| &g.scores).flat_map(|s| &s.breakdown) {
        match parts.iter_mut().find(|(n, _)| n == name) {
            Some((_, values)) => values.push(*value),
            None => parts.push((name.clone(), vec![*value])),
        }
    }
    let example = graded.first().and_then(|g| Some((g.trajectories.first()?, g.scores.first()?)));
    EvaluationReport {
        step,
        greedy,
        reward: mean(&mut graded.iter().flat_map(|g| &g.scores).map(|s| s.score)),
        parts: parts.into_iter().map(|(name, values)| (name, mean(&mut values.into_iter()))).collect(),
        per_prompt: graded.iter().map(|g| mean(&mut g.scores.iter().map(|s| s.score))).collect(),
        samples,
        example: example.map(|(t, s)| ExampleDialogue { prompt: 0, turns: t.turns.clone(), reward: s.score }),
    }
}

fn text(report: &Report, example: Option<&ExampleDialogue>, out: &mut dyn Write) -> Result<(), CliError> {
    if let Some(example) = example {
        writeln!(out, "Held-out prompt {} (reward {:.2}):", example.prompt, example.reward)?;
        turns(&example.turns, "  ", out)?;
        writeln!(out)?;
    }
    writeln!(out, "held-out reward, sampled  {:.4}  ({} prompts x {})", report.heldout, report.prompts, report.samples)?;
    writeln!(out, "held-out reward, greedy   {:.4}", report.heldout_greedy)?;
    for (part, value) in &report.parts {
        writeln!(out, "  of it {part}  {value:.4}")?;
    }
    writeln!(out, "weights  {}", shown(&report.weights_sha256))?;
    Ok(())
}
