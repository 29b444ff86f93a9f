//! Continuous batching, decided purely: which sequences are in the next step, which wait, which give their memory up.
//!
//! Invariants
//! - **S1** a sequence's tokens do not depend on this file: every token is fed exactly once in order, and giving memory up
//!   only means feeding the same tokens again (B1 makes that exact).
//! - **S2** first come, first served: a job is admitted before every later one, keeps its place when it is preempted, and
//!   the oldest job is never preempted, so every job ends.
//! - **S3** a step feeds one token to every decoding sequence; long prompts share what is left of the step's budget.
//! - **S5** what several sequences begin with, as the samples of a group do with their prompt, is fed once: the later ones wait
//!   for the first and take its memory over.
//! - **S6** after a change of weights nothing is decoded from keys and values of the old ones, unless they are kept on purpose
//!   ([`Scheduler::keep_all`]); then they are never shared, and whoever has them is told ([`Scheduler::is_stale`]).
//! - **S4** the number of jobs is bounded by [`Limits::max_jobs`]; past it `submit` refuses.
use crate::EngineError;
use crate::beginnings::Beginnings;
use std::collections::BTreeMap;

/// One sequence that lives over several turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Bounds of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences in one step, at most.
    pub max_running: usize,
    /// Jobs running or waiting, at most.
    pub max_jobs: usize,
    /// Tokens in one step, at most; decoding sequences always get theirs.
    pub max_step_tokens: usize,
    /// Tokens of one sequence, at most.
    pub max_context: usize,
}

/// Why a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token or stop string was sampled.
    Stop,
    /// The job's token budget is spent.
    Length,
    /// The context is full.
    Context,
}

/// Tokens of one session to feed in this step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feed {
    /// Whose.
    pub session: SessionId,
    /// First token, an index into the session's tokens.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Whether these are its last, so that the next token is sampled from their logits.
    pub samples: bool,
    /// The session has no memory yet: it begins with this one's first `start` tokens.
    pub from: Option<SessionId>,
}

/// A beginning shorter than this is fed again rather than waited for.
const SHARED_TOKENS: usize = 8;

/// What to do when memory is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relief {
    /// Close this session's KV memory; its tokens will be fed again when it needs them.
    Evict(SessionId),
    /// Nothing is left to give up: this job fails, its session is closed.
    Fail(SessionId),
    /// Nothing runs.
    Nothing,
}

/// See [`Scheduler::beginnings`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// Fed by itself, or in memory already.
    Own,
    /// So many tokens of another session's memory.
    Of(SessionId, usize),
    /// An older job is about to feed it.
    Awaited,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Waiting,
    Running,
}

#[derive(Debug)]
struct Session {
    tokens: Vec<u32>,
    /// Tokens whose keys and values are in memory.
    fed: usize,
    has_memory: bool,
    /// Some of them are of other weights than those in use.
    stale: bool,
    phase: Phase,
    /// Place in the queue of the current or last job.
    arrival: u64,
    /// Tokens that the current job may still sample.
    budget: u32,
}

impl Session {
    fn forget(&mut self) {
        (self.fed, self.has_memory, self.stale) = (0, false, false);
    }
}

/// The state of the batch.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    sessions: BTreeMap<SessionId, Session>,
    waiting: BTreeMap<u64, SessionId>,
    running: BTreeMap<u64, SessionId>,
    arrivals: u64,
    /// After a shortage: no more sequences than this until one ends.
    ceiling: usize,
}

impl Scheduler {
    /// An empty batch.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sessions: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            arrivals: 0,
            ceiling: limits.max_running,
        }
    }

    /// Starts an empty session; an id is used once.
    pub fn open(&mut self, id: SessionId) {
        let session =
            Session { tokens: Vec::new(), fed: 0, has_memory: false, stale: false, phase: Phase::Idle, arrival: 0, budget: 0 };
        self.sessions.insert(id, session);
    }

    /// Appends tokens and asks for up to `max_new` sampled ones after them.
    ///
    /// Errors: [`EngineError::Input`] for an unknown or busy session, an empty context or budget, a context that would be
    /// too long; [`EngineError::Capacity`] when too many jobs are here (S4).
    pub fn submit(&mut self, id: SessionId, append: &[u32], max_new: u32) -> Result<(), EngineError> {
        if self.waiting.len() + self.running.len() >= self.limits.max_jobs {
            return Err(EngineError::Capacity(format!("{} generations are already queued", self.limits.max_jobs)));
        }
        let max_context = self.limits.max_context;
        let Some(session) = self.sessions.get_mut(&id) else {
            return Err(EngineError::Input(format!("session {} is closed", id.0)));
        };
        let length = session.tokens.len() + append.len();
        if session.phase != Phase::Idle {
            return Err(EngineError::Input(format!("session {} is already generating", id.0)));
        }
        if length == 0 || max_new == 0 {
            return Err(EngineError::Input(format!("nothing to generate: {length} context tokens, budget {max_new}")));
        }
        if length >= max_context {
            return Err(EngineError::Input(format!(
                "a context of {length} tokens leaves no room in the model's {max_context}: shorten the prompt"
            )));
        }
        session.tokens.extend_from_slice(append);
        session.phase = Phase::Waiting;
        session.budget = max_new;
        session.arrival = self.arrivals;
        self.waiting.insert(self.arrivals, id);
        self.arrivals += 1;
        Ok(())
    }

    /// As [`Self::submit`] for a generation of which the last `begun` of these tokens were sampled before. Where they are its end
    /// (`end`, or the context is full with them) nothing is queued: the tokens are fed with the session's next job.
    pub fn go_on(
        &mut self,
        id: SessionId,
        append: &[u32],
        begun: usize,
        max_new: u32,
        end: Option<Finish>,
    ) -> Result<Option<Finish>, EngineError> {
        let max_context = self.limits.max_context;
        let session = self.sessions.get_mut(&id).filter(|session| session.phase == Phase::Idle);
        let full = |s: &Session| begun > 0 && s.tokens.len() + append.len() >= max_context;
        let end = end.or_else(|| session.as_deref().filter(|s| full(s)).map(|_| Finish::Context));
        let (Some(session), Some(end)) = (session, end) else { return self.submit(id, append, max_new).map(|()| None) };
        session.tokens.extend_from_slice(append);
        Ok(Some(end))
    }

    /// Forgets a session in whatever phase it is. `true` if it held memory, which the caller now frees.
    pub fn close(&mut self, id: SessionId) -> bool {
        let Some(session) = self.sessions.remove(&id) else { return false };
        match session.phase {
            Phase::Waiting => self.waiting.remove(&session.arrival),
            Phase::Running => self.running.remove(&session.arrival),
            Phase::Idle => None,
        };
        self.ceiling = self.limits.max_running;
        session.has_memory
    }

    /// Whether a step has anything to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.running.is_empty()
    }

    /// All sessions, open ones in any phase.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.sessions.keys().copied()
    }

    /// Jobs running and waiting.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// A session's tokens so far.
    #[must_use]
    pub fn tokens(&self, id: SessionId) -> &[u32] {
        self.sessions.get(&id).map_or(&[], |s| &s.tokens)
    }

    /// Admits what fits and lays out the next step, oldest job first. Changes nothing about what has been fed: that is
    /// [`Scheduler::fed`]'s, after the step has succeeded.
    pub fn plan(&mut self) -> Vec<Feed> {
        let places = self.limits.max_running.min(self.ceiling);
        while self.running.len() < places {
            let Some((arrival, id)) = self.waiting.pop_first() else { break };
            self.running.insert(arrival, id);
            if let Some(session) = self.sessions.get_mut(&id) {
                session.phase = Phase::Running;
            }
        }
        let length = |id: &SessionId| self.sessions.get(id).map_or((0, 0), |s| (s.fed, s.tokens.len()));
        let decoding = self.running.values().map(length).filter(|(fed, all)| fed + 1 == *all).count();
        let mut budget = self.limits.max_step_tokens.saturating_sub(decoding).max(usize::from(decoding == 0));
        let mut feeds = Vec::with_capacity(self.running.len());
        for (id, beginning) in self.beginnings() {
            let (fed, all) = length(&id);
            let (from, start) = match beginning {
                Beginning::Own => (None, fed),
                Beginning::Of(other, len) => (Some(other), len),
                Beginning::Awaited => continue,
            };
            let want = all - start;
            let len = if want == 1 { 1 } else { want.min(budget) };
            if len == 0 {
                continue;
            }
            if want > 1 {
                budget -= len;
            }
            feeds.push(Feed { session: id, start, len, samples: len == want, from });
        }
        feeds
    }

    /// Where every running session's first tokens come from (S5), oldest job first. Only older jobs are waited for, so the
    /// oldest waits for none.
    fn beginnings(&self) -> Vec<(SessionId, Beginning)> {
        let running = self.running.values().filter_map(|id| Some((*id, self.sessions.get(id)?)));
        if running.clone().all(|(_, session)| session.fed > 0) {
            return running.map(|(id, _)| (id, Beginning::Own)).collect();
        }
        let (mut held, mut older) = (Beginnings::default(), Beginnings::default());
        for (id, session) in self.sessions.iter().filter(|(_, session)| session.has_memory && !session.stale) {
            held.add(&session.tokens[..session.fed], *id);
        }
        let mut out = Vec::with_capacity(self.running.len());
        for (id, session) in running {
            out.push((id, if session.fed == 0 { beginning(&session.tokens, &held, &older) } else { Beginning::Own }));
            if !session.stale {
                older.add(&session.tokens, id);
            }
        }
        out
    }

    /// The feed is in memory now.
    pub fn fed(&mut self, feed: &Feed) {
        if let Some(session) = self.sessions.get_mut(&feed.session) {
            session.fed = feed.start + feed.len;
            session.has_memory = true;
        }
    }

    /// A sampled token, with whether it ends the job. `Some` ends the job; the session stays for its next turn.
    pub fn push(&mut self, id: SessionId, token: u32, stop: bool) -> Option<Finish> {
        let session = self.sessions.get_mut(&id)?;
        session.tokens.push(token);
        session.budget = session.budget.saturating_sub(1);
        let finish = if stop {
            Finish::Stop
        } else if session.budget == 0 {
            Finish::Length
        } else if session.tokens.len() >= self.limits.max_context {
            Finish::Context
        } else {
            return None;
        };
        session.phase = Phase::Idle;
        self.running.remove(&session.arrival);
        self.ceiling = self.limits.max_running;
        Some(finish)
    }

    /// Memory is short: first a session that is not in the step gives its memory up, the one idle longest first, then the
    /// youngest running job goes back to the queue, then the only one left fails.
    pub fn relieve(&mut self) -> Relief {
        let resting = |s: &Session| s.has_memory && s.phase != Phase::Running;
        let idle = self.sessions.iter().filter(|(_, s)| resting(s)).min_by_key(|(_, s)| s.arrival).map(|(id, _)| *id);
        if let Some(id) = idle {
            self.forget(id);
            return Relief::Evict(id);
        }
        let Some((arrival, id)) = self.running.pop_last() else { return Relief::Nothing };
        if self.running.is_empty() {
            self.sessions.remove(&id);
            return Relief::Fail(id);
        }
        self.ceiling = self.running.len();
        self.waiting.insert(arrival, id);
        self.forget(id);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.phase = Phase::Waiting;
        }
        Relief::Evict(id)
    }

    /// The weights have changed: everything is fed again under the new ones before the next token.
    pub fn forget_all(&mut self) {
        self.sessions.values_mut().for_each(Session::forget);
    }

    /// The weights have changed and memory is kept: what is fed stays, of the old weights.
    pub fn keep_all(&mut self) {
        for session in self.sessions.values_mut() {
            session.stale |= session.fed > 0;
        }
    }

    /// Whether a session's memory is of other weights than those in use.
    #[must_use]
    pub fn is_stale(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|s| s.stale)
    }

    fn forget(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.forget();
        }
    }
}

/// Where a sequence that has no memory begins, given what others have in memory and what older jobs will have.
fn beginning(own: &[u32], held: &Beginnings<'_, SessionId>, older: &Beginnings<'_, SessionId>) -> Beginning {
    // The last token is always fed: its logits are wanted.
    let own = &own[..own.len() - 1];
    let (held, coming) = (held.longest(own), older.longest(own).map_or(0, |(len, _)| len));
    match held {
        _ if coming > held.map_or(0, |(len, _)| len) && coming >= SHARED_TOKENS => Beginning::Awaited,
        Some((len, other)) if len >= SHARED_TOKENS => Beginning::Of(other, len),
        _ => Beginning::Own,
    }
}

#[cfg(test)]
mod tests;
