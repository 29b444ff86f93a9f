//! `cluster generate`: completions of the prompts of a file, in input order, through the continuous batching that
//! training uses. A row's tokens depend on model, seed and row number alone, never on the batch.
mod output;

use super::jsonl::{self, Place};
use super::open::{ModelArgs, Opened, runtime};
use super::sampling::{ConstraintArgs, SamplingArgs};
use super::{CliError, Exit};
use cohort_engine::{
    Completion, Decoding, DrawKey, EngineError, EngineHandle, EngineOptions, Penalties, Sampled, Session, Truncation,
};
use cohort_model::{ChatMessage, ModelFiles};
use cohort_rollout::Grammar;
use output::{Output, Style};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Keeps the draws of this command apart from those of training and evaluation ("gene").
const PURPOSE: u64 = 0x6765_6e65;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows {"id","prompt"}, {"id","messages"} or {"id","prompt_ids"}, one JSON object a line; - is stdin
    #[arg(long)]
    input: PathBuf,
    /// Always take the most likely token
    #[arg(long)]
    greedy: bool,
    /// Tokens of one completion, at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: u32,
    /// Go on past the end of the sequence, to --max-new-tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Logits are divided by this
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = temperature)]
    temperature: f32,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    constraint: ConstraintArgs,
    /// Key of the draws
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Sequences decoded together, at most
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Write each token as it is sampled, a JSON object a line; the row's own follows its last token
    #[arg(long)]
    stream: bool,
    /// Write rows as JSON on a terminal too, where text is shown as it grows
    #[arg(long, conflicts_with = "stream")]
    json: bool,
}

impl Args {
    fn style(&self) -> Style {
        match (self.stream, self.json || !std::io::stdout().is_terminal()) {
            (true, _) => Style::Tokens,
            (false, true) => Style::Rows,
            (false, false) => Style::Text,
        }
    }
}

/// A temperature as the engine takes it.
pub(super) fn temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(t) if t > 0.0 && t.is_finite() => Ok(t),
        _ => Err("a temperature is a number above 0; for the most likely tokens use --greedy".to_owned()),
    }
}

/// A row in; further keys are ignored.
#[derive(Debug, Deserialize)]
struct Row {
    id: serde_json::Value,
    prompt: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    prompt_ids: Option<Vec<u32>>,
}

/// SHA-256, hex, over the little-endian 32-bit token ids of one completion.
#[must_use]
pub fn token_sha256(tokens: &[u32]) -> String {
    let mut hash = Sha256::new();
    tokens.iter().for_each(|t| hash.update(t.to_le_bytes()));
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn run(args: &Args, out: &mut dyn Write) -> Result<Exit, CliError> {
    let limits = args.sampling.limits()?;
    let rows: Vec<(Place, Row)> = jsonl::read(&args.input)?;
    let files = args.model.files()?;
    let grammar = args.constraint.config().map(|constraint| Grammar::compile(&constraint, &files)).transpose()?;
    if grammar.is_some() && args.ignore_eos {
        return Err(CliError::new(Exit::Usage, "--ignore-eos goes past the end that a grammar has; leave one of them out"));
    }
    let prompts = rows.iter().map(|(place, row)| prompt(&files, place, row)).collect::<Result<Vec<_>, _>>()?;
    let options = EngineOptions { max_running: args.batch.into(), ..EngineOptions::default() };
    let Opened { files, engine } = args.model.open(files, options)?;
    let style = args.style();
    let output = Output::new(style, &files, &rows, out);
    let mut job = Job { args, limits, grammar, rows: &rows, files: &files, output };
    runtime()?.block_on(job.run(&engine, style, prompts))?;
    Ok(Exit::Success)
}

/// The tokens of a row's prompt.
fn prompt(files: &ModelFiles, place: &Place, row: &Row) -> Result<Vec<u32>, CliError> {
    let encode = |text: &str, special| files.tokenizer.encode(text, special).map_err(|e| place.error(e));
    let tokens = match (&row.prompt, &row.messages, &row.prompt_ids) {
        (Some(text), None, None) => encode(text, true)?,
        (None, Some(messages), None) => {
            let chat = files.chat.as_ref().ok_or_else(|| {
                place.error(format!("{} has no chat template, so \"messages\" mean nothing to it; give \"prompt\"", files.source))
            })?;
            encode(&chat.render(messages, true).map_err(|e| place.error(e))?, false)?
        }
        (None, None, Some(ids)) => ids.clone(),
        _ => return Err(place.error("a row has one of \"prompt\", \"messages\" and \"prompt_ids\"")),
    };
    check_ids(files, place, &tokens)?;
    Ok(tokens)
}

/// Refuses a context that the model cannot take.
pub(super) fn check_ids(files: &ModelFiles, place: &Place, tokens: &[u32]) -> Result<(), CliError> {
    let (vocab, context) = (files.spec.vocab, files.spec.max_context);
    if tokens.is_empty() {
        return Err(place.error("the prompt has no tokens"));
    }
    if tokens.len() > context {
        return Err(
            place.error(format!("{} tokens do not fit the model's context of {context}; shorten the prompt", tokens.len()))
        );
    }
    match tokens.iter().position(|&t| t as usize >= vocab) {
        Some(i) => Err(place.error(format!("token id {} at {i} is past the vocabulary of {vocab}", tokens[i]))),
        None => Ok(()),
    }
}

/// What happened to a row.
enum Event {
    Token(usize, Sampled),
    Done(usize, Result<Completion, EngineError>),
}

/// Events on their way to the output; the engine itself never waits for them.
const EVENTS: usize = 1024;

struct Job<'a> {
    args: &'a Args,
    limits: (Penalties, Truncation),
    grammar: Option<Grammar>,
    rows: &'a [(Place, Row)],
    files: &'a ModelFiles,
    output: Output<'a>,
}

impl Job<'_> {
    /// Keeps twice the batch in the engine, so that a finished sequence is replaced at once.
    async fn run(&mut self, engine: &EngineHandle, style: Style, prompts: Vec<Vec<u32>>) -> Result<(), CliError> {
        let window = 2 * usize::from(self.args.batch);
        let mut running = JoinSet::new();
        let (events, mut inbox) = mpsc::channel(EVENTS);
        let mut prompts = prompts.into_iter().enumerate();
        let mut open = 0;
        loop {
            // A finished row far ahead of the next one to print holds memory: bound those as well.
            while open + self.output.waiting() < window.max(64) && open < window {
                let Some((i, prompt)) = prompts.next() else { break };
                let (session, decoding, events) = (engine.session(), self.decoding(i), events.clone());
                running.spawn(complete(session, prompt, decoding, i, style, events));
                open += 1;
            }
            if open == 0 {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some(event) = inbox.recv() => match event {
                    Event::Token(row, sampled) => self.output.token(row, sampled)?,
                    Event::Done(row, done) => {
                        open -= 1;
                        let done = done.map_err(|e| CliError { message: self.rows[row].0.error(&e).message, ..e.into() })?;
                        self.output.done(row, done)?;
                    }
                },
                Some(ended) = running.join_next() => ended.map_err(|e| CliError::new(Exit::Internal, e))?,
            }
        }
    }

    fn decoding(&self, row: usize) -> Decoding {
        Decoding {
            temperature: self.args.temperature,
            greedy: self.args.greedy,
            constraint: self.grammar.as_ref().map(Grammar::begin),
            penalties: self.limits.0,
            truncation: self.limits.1,
            max_new_tokens: self.args.max_new_tokens,
            stop_ids: if self.args.ignore_eos { Vec::new() } else { self.files.eos.clone() },
            watch: None,
            key: DrawKey { seed: cohort_rollout::draw::hash(&[self.args.seed, PURPOSE]), group: row as u64, sample: 0 },
            begun: Vec::new(),
        }
    }
}

/// One row through the engine.
async fn complete(
    mut session: Session,
    prompt: Vec<u32>,
    decoding: Decoding,
    row: usize,
    style: Style,
    events: mpsc::Sender<Event>,
) {
    let done = async {
        if style == Style::Rows {
            return session.generate(&prompt, decoding).await;
        }
        let mut stream = session.stream(&prompt, decoding).await?;
        while let Some(sampled) = stream.next().await {
            if events.send(Event::Token(row, sampled)).await.is_err() {
                break;
            }
        }
        stream.finish().await
    };
    let done = done.await;
    // Nobody listens once the command has failed.
    let _ = events.send(Event::Done(row, done)).await;
}
