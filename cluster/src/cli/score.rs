//! `cluster score`: log-probs of given tokens, with the forward pass of the learner. Fed what `rollouts --json` exports and
//! the checkpoint of that version, it gives the bits that the sampler stored.
use super::generate::{check_ids, temperature};
use super::jsonl::{self, Place};
use super::open::{ModelArgs, Opened, runtime};
use super::{CliError, Exit, json_line};
use cohort_engine::{EngineHandle, EngineOptions, PackedBatch, PackedSequence};
use cohort_model::ModelFiles;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;

/// Tokens computed together. A log-prob does not depend on it.
const BATCH_TOKENS: usize = 4096;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows {"id","prompt_ids","completion_ids"} or {"id","token_ids","mask"}, or the output of `rollouts --json`; - is stdin
    #[arg(long)]
    input: PathBuf,
    /// Logits are divided by this [default: the row's own "temperature", else 1]
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,
}

/// Any of the rows that are read; further keys are ignored.
#[derive(Debug, Deserialize)]
struct Row {
    id: Option<Value>,
    prompt_ids: Option<Vec<u32>>,
    completion_ids: Option<Vec<u32>>,
    trajectory_id: Option<String>,
    token_ids: Option<Vec<u32>>,
    mask: Option<Vec<u8>>,
    temperature: Option<f32>,
    trajectories: Option<Vec<Row>>,
    groups: Option<Vec<Row>>,
}

/// One sequence to score.
#[derive(Debug)]
struct Wanted {
    place: Place,
    id: Value,
    sequence: PackedSequence,
    /// Length of the answer: that of the completion, or of all tokens with 0 where the mask is 0.
    whole: bool,
}

#[derive(Debug, Serialize)]
struct Scored<'a> {
    id: &'a Value,
    logprobs: Vec<f32>,
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let rows: Vec<(Place, Row)> = jsonl::read(&args.input)?;
    let files = args.model.files()?;
    let mut wanted = Vec::new();
    for (place, row) in rows {
        collect(&files, args.temperature, &place, row, &mut wanted)?;
    }
    let Opened { engine, .. } = args.model.open(files, EngineOptions::default())?;
    let runtime = runtime()?;
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(batch_len(rest));
        runtime.block_on(score(&engine, batch, out))?;
        rest = after;
    }
    Ok(Exit::Success)
}

/// As many sequences as fit the budget, at least one.
fn batch_len(rest: &[Wanted]) -> usize {
    let mut tokens = 0;
    let fits = rest.iter().take_while(|w| {
        tokens += w.sequence.tokens.len();
        tokens <= BATCH_TOKENS
    });
    fits.count().max(1)
}

/// The sequences of a row.
fn collect(files: &ModelFiles, forced: Option<f32>, place: &Place, row: Row, out: &mut Vec<Wanted>) -> Result<(), CliError> {
    if let Some(nested) = row.groups.or(row.trajectories) {
        return nested.into_iter().try_for_each(|row| collect(files, forced, place, row, out));
    }
    let id = row.id.or(row.trajectory_id.map(Value::from)).ok_or_else(|| place.error("the row has no \"id\""))?;
    let (tokens, targets, whole) = match (row.prompt_ids, row.completion_ids, row.token_ids, row.mask) {
        (Some(prompt), Some(completion), None, None) => {
            let targets = positions(prompt.len()..prompt.len() + completion.len());
            ([prompt, completion].concat(), targets, false)
        }
        (None, None, Some(tokens), Some(mask)) => {
            if mask.len() != tokens.len() {
                return Err(place.error(format!("{} tokens and a mask of {}", tokens.len(), mask.len())));
            }
            let targets = positions((0..mask.len()).filter(|&i| mask[i] != 0));
            (tokens, targets, true)
        }
        _ => return Err(place.error("a row has \"prompt_ids\" and \"completion_ids\", or \"token_ids\" and \"mask\"")),
    };
    check_ids(files, place, &tokens)?;
    if targets.first() == Some(&0) {
        return Err(place.error("the first token has nothing before it to be predicted from; give at least one prompt token"));
    }
    let temperature = forced.or(row.temperature).unwrap_or(1.0);
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(place.error(format!("temperature {temperature} is not above 0")));
    }
    let sequence = PackedSequence { tokens, targets, temperature, shared: 0 };
    out.push(Wanted { place: place.clone(), id, sequence, whole });
    Ok(())
}

fn positions(range: impl Iterator<Item = usize>) -> Vec<u32> {
    // Contexts are far below 2^32 (`check_ids`).
    range.filter_map(|i| u32::try_from(i).ok()).collect()
}

async fn score(engine: &EngineHandle, wanted: &[Wanted], out: &mut dyn Write) -> Result<(), CliError> {
    let batch = PackedBatch { sequences: wanted.iter().map(|w| w.sequence.clone()).collect() };
    let forward = engine.with_backend(move |backend| backend.forward(&batch, false)).await?;
    let forward = forward.map_err(|e| CliError { message: wanted[0].place.error(&e).message, ..e.into() })?;
    let mut values = forward.logp.into_iter();
    for Wanted { id, sequence, whole, .. } in wanted {
        let own: Vec<f32> = values.by_ref().take(sequence.targets.len()).collect();
        let logprobs = if *whole { spread(&own, sequence) } else { own };
        json_line(out, &Scored { id, logprobs })?;
    }
    Ok(())
}

/// One value a token, 0 where none was wanted: the shape that trajectories have.
fn spread(values: &[f32], sequence: &PackedSequence) -> Vec<f32> {
    let mut out = vec![0.0; sequence.tokens.len()];
    sequence.targets.iter().zip(values).for_each(|(&t, &value)| out[t as usize] = value);
    out
}
