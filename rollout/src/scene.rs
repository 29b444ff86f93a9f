//! One dialogue in progress: what an agent can do in it.
use crate::environments::Episode;
use crate::format::{ChatFormat, before_stop};
use crate::tape::{NextTurn, Tapes};
use crate::transcript::Transcript;
use crate::{Grammar, RolloutError};
use cohort_engine::{Completion, Decoding, DrawKey, EngineError, Finish, Penalties, Session, StopWatch, Truncation};
use cohort_protocol::{FinishReason, SampleIx, SamplingParams, ToolCall, ToolResult, Turn, TurnRole};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What happens with every sampled token, on the engine's thread: counting, crash points.
pub type TokenHook = Arc<dyn Fn() + Send + Sync>;

/// What the policy did when it was asked to speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spoken {
    /// It ended its turn.
    Said(String),
    /// The episode is over: the turn ran out of tokens, the context is full, no turns are left.
    Ended(FinishReason),
}

/// A dialogue in progress. An [`Agent`](crate::Agent) speaks in it and calls tools.
pub struct Scene<'a> {
    format: &'a ChatFormat,
    session: Session,
    sampling: SamplingParams,
    key: DrawKey,
    stop: &'a [String],
    grammar: Option<&'a Grammar>,
    hook: Option<TokenHook>,
    max_turns: u32,
    spoken: u32,
    /// Index and sampled end token of the assistant's last turn.
    last: Option<(usize, Option<u32>)>,
    tape: Option<Arc<Tapes>>,
    /// Tokens of turns that were said elsewhere: the engine has not seen them yet.
    unfed: Vec<u32>,
    pub(crate) transcript: Transcript,
    pub(crate) episode: Box<dyn Episode>,
}

/// How a scene's turns are drawn.
pub(crate) struct Staging<'a> {
    pub(crate) format: &'a ChatFormat,
    pub(crate) session: Session,
    pub(crate) sampling: SamplingParams,
    pub(crate) key: DrawKey,
    pub(crate) stop: &'a [String],
    pub(crate) grammar: Option<&'a Grammar>,
    pub(crate) hook: Option<TokenHook>,
    pub(crate) tape: Option<Arc<Tapes>>,
    pub(crate) max_turns: u32,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(staging: Staging<'a>, episode: Box<dyn Episode>, opening: Vec<Turn>) -> Self {
        let Staging { format, session, sampling, key, stop, grammar, hook, tape, max_turns } = staging;
        let (transcript, spoken, last, unfed) = (Transcript::new(opening), 0, None, Vec::new());
        Self { format, session, sampling, key, stop, grammar, hook, max_turns, spoken, last, tape, unfed, transcript, episode }
    }

    /// The dialogue so far.
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        &self.transcript.turns
    }

    /// Temperature of the log-probs: greedy decoding without one scales nothing.
    pub(crate) fn temperature(&self) -> f32 {
        if self.sampling.greedy && self.sampling.temperature == 0.0 { 1.0 } else { self.sampling.temperature }
    }

    /// Asks the policy for one assistant turn and adds it to the dialogue.
    ///
    /// Errors: those of the engine and the template. A first prompt that does not fit the context is an error, a later one
    /// ends the episode.
    pub async fn speak(&mut self) -> Result<Spoken, RolloutError> {
        if self.spoken == self.max_turns {
            return Ok(Spoken::Ended(FinishReason::MaxTurns));
        }
        let append = match self.last {
            None => self.format.prompt(&self.transcript.turns)?,
            Some((assistant, closed)) => self.format.continuation(&self.transcript.turns, assistant, closed)?,
        };
        let room = self.session.engine().spec().max_context;
        if self.transcript.tokens().len() + append.len() >= room {
            if self.last.is_some() {
                return Ok(Spoken::Ended(FinishReason::Context));
            }
            return Err(EngineError::Input(format!(
                "the prompt has {} tokens and the model's context {room}: shorten the prompt or use another model",
                append.len()
            ))
            .into());
        }
        self.transcript.push_template(&append);
        let completion = self.complete(append).await?;
        let (start, len) = self.transcript.push_sampled(&completion);
        let (text, closed) = self.format.read(&completion.tokens)?;
        let mut turn = Turn::text(TurnRole::Assistant, before_stop(&text, self.stop));
        (turn.start, turn.len) = (start, len);
        self.last = Some((self.transcript.turns.len(), closed));
        self.spoken += 1;
        let said = turn.content.clone();
        self.transcript.turns.push(turn);
        Ok(match completion.finish {
            Finish::Stop => Spoken::Said(said),
            Finish::Length => Spoken::Ended(FinishReason::Length),
            Finish::Context => Spoken::Ended(FinishReason::Context),
        })
    }

    /// One turn of the policy after these tokens, or as much of it as was not said elsewhere.
    async fn complete(&mut self, append: Vec<u32>) -> Result<Completion, EngineError> {
        self.unfed.extend(append);
        let Some(tape) = self.tape.clone() else {
            let feed = std::mem::take(&mut self.unfed);
            return self.session.generate(&feed, self.decoding()).await;
        };
        let sample = SampleIx(self.key.sample);
        let begun = match tape.next_turn(sample) {
            NextTurn::Said(completion) => {
                self.unfed.extend(&completion.tokens);
                return Ok(completion);
            }
            NextTurn::Begun(begun) => begun,
            NextTurn::Anew => Vec::new(),
        };
        let sink = tape.listen(sample, self.session.engine().spec().max_context.min(self.sampling.max_new_tokens as usize));
        let feed = std::mem::take(&mut self.unfed);
        let completion = self.session.generate_into(&feed, Decoding { begun, ..self.decoding() }, sink).await?;
        tape.ended(sample, completion.finish);
        Ok(completion)
    }

    /// Names of the tools that the environment has.
    #[must_use]
    pub fn tools(&self) -> &'static [&'static str] {
        self.episode.tools()
    }

    /// Lets the environment answer a call; `None` where it has no such tool.
    pub async fn call_environment(&mut self, call: &ToolCall) -> Result<Option<ToolResult>, RolloutError> {
        self.episode.call_tool(call).await
    }

    /// Notes a call that the last assistant turn made, and puts the tool's answer into the dialogue.
    pub fn show_result(&mut self, call: ToolCall, result: ToolResult) {
        if let Some(turn) = self.last.and_then(|(index, _)| self.transcript.turns.get_mut(index)) {
            turn.tool_calls.push(call);
        }
        let mut turn = Turn::text(TurnRole::Tool, result.content.clone());
        turn.tool_results.push(result);
        self.transcript.turns.push(turn);
    }

    /// Puts turns of the environment into the dialogue.
    pub(crate) fn show(&mut self, turns: Vec<Turn>) {
        self.transcript.turns.extend(turns);
    }

    /// The assistant's last turn.
    pub(crate) fn last_turn(&mut self) -> Option<&mut Turn> {
        let (index, _) = self.last?;
        self.transcript.turns.get_mut(index)
    }

    fn decoding(&self) -> Decoding {
        let stop = self.format.stop_watch(self.stop);
        let hook = self.hook.clone();
        let watch: Option<Box<dyn StopWatch>> = match (stop, hook) {
            (None, None) => None,
            (stop, hook) => {
                let mut stop = stop;
                Some(Box::new(move |token: u32| {
                    if let Some(hook) = &hook {
                        hook();
                    }
                    stop.as_mut().is_some_and(|stop| stop.push(token))
                }))
            }
        };
        let (penalties, truncation) = limits_of(&self.sampling);
        Decoding {
            temperature: self.temperature(),
            greedy: self.sampling.greedy,
            constraint: self.grammar.map(Grammar::begin),
            penalties,
            truncation,
            max_new_tokens: self.sampling.max_new_tokens,
            stop_ids: self.format.end().to_vec(),
            watch,
            key: self.key,
            begun: Vec::new(),
        }
    }
}

/// What a lease's penalties and truncation are to the engine.
pub(crate) fn limits_of(sampling: &SamplingParams) -> (Penalties, Truncation) {
    let SamplingParams { top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, .. } = *sampling;
    let penalties = Penalties { repetition: repetition_penalty, presence: presence_penalty, frequency: frequency_penalty };
    (penalties, Truncation { top_k, top_p, min_p })
}

/// A hook that counts tokens.
#[must_use]
pub fn counting(counter: Arc<AtomicU64>) -> TokenHook {
    Arc::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    })
}
