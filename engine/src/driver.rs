//! The engine's thread: takes commands between steps, runs what the scheduler planned, samples, answers.
use crate::handle::{Completion, Label};
use crate::sampler::{Constraint, Decoding, Drawn, sample};
use crate::scheduler::{Feed, Limits, Relief, Scheduler, SessionId};
use crate::stream::Sampled;
use crate::watched::Watched;
use crate::{Backend, EngineError, Extend, KvId, Scored};
use cohort_kernels::Path;
use crossbeam::channel::{Receiver, TryRecvError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// A command with its place in the bounded queue, given back when it is taken out.
pub(crate) struct Envelope {
    pub(crate) command: Command,
    pub(crate) _place: OwnedSemaphorePermit,
}

pub(crate) enum Command {
    /// Something to do with the backend between steps.
    Run(Box<dyn FnOnce(&mut Core) + Send>),
    /// A generation.
    Generate(Box<GenerateCommand>),
}

pub(crate) struct GenerateCommand {
    pub(crate) session: SessionId,
    pub(crate) alive: Weak<()>,
    pub(crate) append: Vec<u32>,
    pub(crate) decoding: Decoding,
    /// Where its tokens go as they are sampled; it has a place for each of them.
    pub(crate) sink: Option<mpsc::Sender<Sampled>>,
    pub(crate) reply: oneshot::Sender<Result<Completion, EngineError>>,
    /// Its place among the jobs, given back when the engine has forgotten it.
    pub(crate) place: OwnedSemaphorePermit,
}

/// The backend with the name of its weights.
pub(crate) struct Core {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) label: Option<Label>,
    weights_changed: bool,
}

impl Core {
    pub(crate) fn with_backend<R>(&mut self, f: impl FnOnce(&mut dyn Backend) -> R) -> R {
        let mut watched = Watched::new(self.backend.as_mut());
        let result = f(&mut watched);
        if watched.changed() {
            self.label = None;
            self.weights_changed = true;
        }
        result
    }

    pub(crate) fn expect(&self, version: u64) -> Result<Label, EngineError> {
        match self.label {
            Some(label) if label.version == version => Ok(label),
            Some(label) => Err(EngineError::Input(format!("the engine holds version {}, not {version}", label.version))),
            None => Err(EngineError::Input(format!("the engine's weights are unnamed, version {version} was expected"))),
        }
    }
}

/// A generation in work.
struct Job {
    decoding: Decoding,
    /// The decoding's own, where threads can share it.
    constraint: Option<Mutex<Box<dyn Constraint>>>,
    made: Completion,
    sink: Option<mpsc::Sender<Sampled>>,
    reply: oneshot::Sender<Result<Completion, EngineError>>,
    _place: OwnedSemaphorePermit,
}

pub(crate) struct Driver {
    core: Core,
    scheduler: Scheduler,
    memories: HashMap<SessionId, KvId>,
    alive: HashMap<SessionId, Weak<()>>,
    jobs: HashMap<SessionId, Job>,
    logits: Vec<f32>,
    path: Path,
    keep_stale_kv: bool,
    sampled: Arc<AtomicU64>,
}

impl Driver {
    pub(crate) fn new(backend: Box<dyn Backend>, limits: Limits, keep_stale_kv: bool, sampled: Arc<AtomicU64>) -> Self {
        // The weights that a backend comes with are the base model's.
        let label = backend.digest().ok().map(|digest| Label { version: 0, digest });
        Self {
            core: Core { backend, label, weights_changed: false },
            scheduler: Scheduler::new(limits),
            memories: HashMap::new(),
            alive: HashMap::new(),
            jobs: HashMap::new(),
            logits: Vec::new(),
            path: Path::detect(),
            keep_stale_kv,
            sampled,
        }
    }

    /// Until the last handle is gone.
    pub(crate) fn run(mut self, inbox: &Receiver<Envelope>) {
        loop {
            if !self.scheduler.has_work() {
                let Ok(envelope) = inbox.recv() else { return };
                self.take(envelope);
            }
            loop {
                match inbox.try_recv() {
                    Ok(envelope) => self.take(envelope),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.sweep();
            if self.scheduler.has_work() {
                self.step();
            }
        }
    }

    fn take(&mut self, envelope: Envelope) {
        let Envelope { command, _place: place } = envelope;
        drop(place);
        match command {
            Command::Run(f) => {
                f(&mut self.core);
                if std::mem::take(&mut self.core.weights_changed) {
                    self.forget_memories();
                }
            }
            Command::Generate(command) => self.admit(*command),
        }
    }

    fn admit(&mut self, command: GenerateCommand) {
        let GenerateCommand { session, alive, mut append, mut decoding, sink, reply, place } = command;
        let first = !self.alive.contains_key(&session);
        if first {
            self.alive.insert(session, alive);
            self.scheduler.open(session);
        }
        let vocab = self.core.backend.spec().vocab;
        let begun = std::mem::take(&mut decoding.begun);
        append.extend(begun.iter().map(|sampled| sampled.token));
        let unknown = append.iter().find(|&&t| t as usize >= vocab);
        let checked = match unknown {
            Some(token) => Err(EngineError::Input(format!("token {token} is not in the vocabulary of {vocab}"))),
            None => decoding.check().and_then(|()| decoding.go_on_after(&begun)).and_then(|(made, end)| {
                let budget = decoding.max_new_tokens.saturating_sub(begun.len() as u32);
                let end = self.scheduler.go_on(session, &append, begun.len(), budget, end)?;
                Ok((made, end))
            }),
        };
        match checked {
            Ok((made, Some(finish))) => {
                let _ = reply.send(Ok(Completion { finish, ..made }));
            }
            Ok((made, None)) => {
                let constraint = decoding.constraint.take().map(Mutex::new);
                self.jobs.insert(session, Job { decoding, constraint, made, sink, reply, _place: place });
            }
            // A caller that no longer waits needs no answer, here and below.
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Frees sessions whose handle, or whose generation's future, was dropped.
    fn sweep(&mut self) {
        let gone = |id: &SessionId| {
            self.alive.get(id).is_none_or(|alive| alive.strong_count() == 0)
                || self.jobs.get(id).is_some_and(|job| job.reply.is_closed())
        };
        let gone: Vec<SessionId> = self.scheduler.sessions().filter(gone).collect();
        for id in gone {
            self.close(id);
        }
    }

    fn close(&mut self, id: SessionId) {
        self.scheduler.close(id);
        self.free(id);
        self.jobs.remove(&id);
        self.alive.remove(&id);
    }

    fn free(&mut self, id: SessionId) {
        if let Some(kv) = self.memories.remove(&id) {
            self.core.backend.kv_close(kv);
        }
    }

    /// The weights have changed.
    fn forget_memories(&mut self) {
        if self.keep_stale_kv {
            return self.scheduler.keep_all();
        }
        self.scheduler.forget_all();
        for kv in self.memories.values() {
            self.core.backend.kv_truncate(*kv, 0);
        }
    }

    fn step(&mut self) {
        let feeds = self.scheduler.plan();
        let Some(label) = self.core.label else {
            return self.fail_all(&feeds, &EngineError::Input("the weights were changed and not named: take a snapshot".into()));
        };
        match self.extend(&feeds) {
            Ok(()) => self.sample_all(&feeds, label.version),
            Err(EngineError::Capacity(why)) => match self.scheduler.relieve() {
                Relief::Evict(id) => self.free(id),
                Relief::Fail(id) => self.fail(id, EngineError::Capacity(why)),
                Relief::Nothing => {}
            },
            Err(error) => self.fail_all(&feeds, &error),
        }
    }

    fn fail_all(&mut self, feeds: &[Feed], error: &EngineError) {
        for feed in feeds {
            self.fail(feed.session, error.clone());
        }
    }

    fn fail(&mut self, id: SessionId, error: EngineError) {
        if let Some(job) = self.jobs.remove(&id) {
            let _ = job.reply.send(Err(error));
        }
        self.close(id);
    }

    /// Logits after every feed into `self.logits`. `[feeds, vocab]`
    fn extend(&mut self, feeds: &[Feed]) -> Result<(), EngineError> {
        for feed in feeds {
            if let std::collections::hash_map::Entry::Vacant(entry) = self.memories.entry(feed.session) {
                entry.insert(self.core.backend.kv_open()?);
            }
        }
        for feed in feeds {
            self.take_beginning(feed)?;
        }
        let mut work = Vec::with_capacity(feeds.len());
        for feed in feeds {
            let tokens = &self.scheduler.tokens(feed.session)[feed.start..feed.start + feed.len];
            if let Some(kv) = self.memories.get(&feed.session) {
                work.push(Extend { kv: *kv, tokens });
            }
        }
        self.logits.resize(feeds.len() * self.core.backend.spec().vocab, 0.0);
        self.core.backend.extend(&work, &mut self.logits)
    }

    /// Gives a session the memory of what it has in common with another.
    fn take_beginning(&mut self, feed: &Feed) -> Result<(), EngineError> {
        let Some(other) = feed.from.and_then(|other| self.memories.get(&other)) else {
            // A step that failed may have begun with another's memory.
            if let Some(kv) = self.memories.get(&feed.session) {
                self.core.backend.kv_truncate(*kv, feed.start);
            }
            return Ok(());
        };
        let fork = self.core.backend.kv_fork(*other, feed.start)?;
        if let Some(empty) = self.memories.insert(feed.session, fork) {
            self.core.backend.kv_close(empty);
        }
        Ok(())
    }

    /// The next token of every feed that wants one.
    fn draw(&self, feeds: &[Feed]) -> Vec<Option<Result<Drawn, EngineError>>> {
        let rule = |feed: &Feed| {
            let job = self.jobs.get(&feed.session).filter(|_| feed.samples)?;
            let rule = job.decoding.rule(self.scheduler.tokens(feed.session), job.made.tokens.len());
            Some(rule.under(job.constraint.as_ref()))
        };
        let rules: Vec<_> = feeds.iter().map(rule).collect();
        let drawn: Vec<OnceLock<_>> = feeds.iter().map(|_| OnceLock::new()).collect();
        let (vocab, path, logits) = (self.core.backend.spec().vocab, self.path, &self.logits);
        self.core.backend.each(feeds.len(), &|i| {
            if let Some(rule) = &rules[i] {
                // The drawn token's position in the context: the same however often it is drawn again.
                let position = (feeds[i].start + feeds[i].len) as u32;
                drawn[i].get_or_init(|| sample(path, &logits[i * vocab..][..vocab], rule, position));
            }
        });
        drawn.into_iter().map(OnceLock::into_inner).collect()
    }

    fn sample_all(&mut self, feeds: &[Feed], version: u64) {
        let samples_exactly = self.core.backend.is_exact();
        let (mut failed, mut scored) = (Vec::new(), Vec::with_capacity(feeds.len()));
        for (feed, drawn) in feeds.iter().zip(self.draw(feeds)) {
            self.scheduler.fed(feed);
            let exact = samples_exactly && !self.scheduler.is_stale(feed.session);
            let Some(job) = self.jobs.get_mut(&feed.session) else { continue };
            let drawn = match drawn {
                None => continue,
                Some(Ok(drawn)) => drawn,
                Some(Err(error)) => {
                    failed.push((feed.session, error));
                    continue;
                }
            };
            if let Some(constraint) = &mut job.constraint
                && let Err(error) = constraint.get_mut().unwrap_or_else(PoisonError::into_inner).push(drawn.token)
            {
                failed.push((feed.session, error));
                continue;
            }
            let Drawn { token, logp, logp_sampled, stats } = drawn;
            scored.extend(self.memories.get(&feed.session).map(|kv| (*kv, Scored { token, logp, stats })));
            let sampled = Sampled { token, logp, logp_sampled, version, exact };
            job.made.push(&sampled);
            if let Some(sink) = &job.sink {
                // A stream that was dropped ends the generation before the next step.
                let _ = sink.try_send(sampled);
            }
            self.sampled.fetch_add(1, Ordering::Relaxed);
            let stop = job.decoding.stops_at(drawn.token);
            if let Some(finish) = self.scheduler.push(feed.session, drawn.token, stop)
                && let Some(mut job) = self.jobs.remove(&feed.session)
            {
                job.made.finish = finish;
                let _ = job.reply.send(Ok(job.made));
            }
        }
        self.core.backend.note_scored(&scored);
        for (session, error) in failed {
            self.fail(session, error);
        }
    }
}

/// Lets control threads go first. Without the right to change it, the priority stays as it is.
pub(crate) fn lower_priority(nice: i32) {
    if nice > 0
        && let Err(error) = rustix::process::nice(nice)
    {
        tracing::debug!(target: "cohort::engine", %error, "priority unchanged");
    }
}

/// Leaves a reason behind when the thread unwinds.
pub(crate) struct FaultOnPanic(pub(crate) Arc<OnceLock<String>>);

impl Drop for FaultOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The first reason stands.
            let _ = self.0.set("its thread panicked; the panic is on standard error".into());
        }
    }
}
