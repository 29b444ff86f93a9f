//! The roles' side of the engine: a clonable handle over a bounded queue to the engine's own thread.
//!
//! Invariants
//! - **H1** the command queue is bounded ([`EngineOptions::queue`]); a full queue makes callers wait, it never grows.
//! - **H2** at most [`EngineOptions::max_jobs`] generations are in the engine; later callers wait in order.
//! - **H3** dropping a [`Session`] or the future of [`Session::generate`] frees what it held; no call is needed.
//! - **H4** an engine thread that ended answers every call with [`EngineError::Stopped`] and the reason.
//! - **H5** the version label always names the weights in memory: whatever changes weights takes the label away.
use crate::driver::{Command, Core, Driver, Envelope, GenerateCommand};
use crate::parts::Named;
use crate::ring::WeightRing;
use crate::sampler::Decoding;
use crate::scheduler::{Finish, Limits, SessionId};
use crate::stream::Sampled;
use crate::{Backend, EngineError};
use cohort_model::{DecoderSpec, WeightSet};
use crossbeam::channel::{Sender, bounded, unbounded};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Bounds of an engine. Defaults suit a few CPU cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Commands waiting for the thread, at most.
    pub queue: usize,
    /// Generations running or queued, at most.
    pub max_jobs: usize,
    /// Sequences decoded together, at most.
    pub max_running: usize,
    /// Tokens of one step, at most.
    pub max_step_tokens: usize,
    /// Sequences under way keep their keys and values when the weights change, instead of computing them anew before their next
    /// token; their further tokens are then marked as inexact ([`Span::exact`]).
    pub keep_stale_kv: bool,
    /// Added to the thread's nice value (and to those it starts), so that control threads go first.
    pub nice: i32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { queue: 64, max_jobs: 1024, max_running: 128, max_step_tokens: 2048, keep_stale_kv: false, nice: 5 }
    }
}

/// Which weights are in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Policy version.
    pub version: u64,
    /// [`WeightSet::digest`] of them.
    pub digest: u64,
}

/// Tokens sampled one after the other under one policy version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Number of them.
    pub tokens: u32,
    /// The version.
    pub version: u64,
    /// Whether their log-probs are that version's own to the bit, as a learner computes them: every key and value before them
    /// was that version's too, and the engine samples with the numbers that it learns with ([`Backend::is_exact`]).
    pub exact: bool,
}

/// What one generation made.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Sampled tokens, the stop token included. `[N]`
    pub tokens: Vec<u32>,
    /// log-softmax(logits / temperature) of each over the whole vocabulary. `[N]`
    pub logp: Vec<f32>,
    /// Log-prob of each under the distribution really drawn from. `[N]`
    pub logp_sampled: Vec<f32>,
    /// The same tokens by the policy version they were sampled under.
    pub spans: Vec<Span>,
    /// Why it ended.
    pub finish: Finish,
}

impl Completion {
    /// No token yet.
    pub(crate) fn empty() -> Self {
        let (tokens, logp, logp_sampled, spans) = Default::default();
        Self { tokens, logp, logp_sampled, spans, finish: Finish::Length }
    }

    /// Another token.
    pub(crate) fn push(&mut self, sampled: &Sampled) {
        let Sampled { token, logp, logp_sampled, version, exact } = *sampled;
        self.tokens.push(token);
        self.logp.push(logp);
        self.logp_sampled.push(logp_sampled);
        match self.spans.last_mut() {
            Some(span) if (span.version, span.exact) == (version, exact) => span.tokens += 1,
            _ => self.spans.push(Span { tokens: 1, version, exact }),
        }
    }
}

/// A handle to an engine's thread. Clones share it; the thread ends with the last of them.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    commands: Sender<Envelope>,
    places: Arc<Semaphore>,
    jobs: Arc<Semaphore>,
    sessions: AtomicU64,
    spec: DecoderSpec,
    numerics: String,
    fault: Arc<OnceLock<String>>,
    sampled: Arc<AtomicU64>,
}

impl EngineHandle {
    /// Starts the engine's thread and makes the backend on it. Blocks until the backend stands.
    ///
    /// Errors: those of `make`; [`EngineError::Device`] when no thread can be started.
    pub fn start<F>(make: F, options: EngineOptions) -> Result<Self, EngineError>
    where
        F: FnOnce() -> Result<Box<dyn Backend>, EngineError> + Send + 'static,
    {
        // Bounded by the places. A bounded channel would keep what is queued when its receiver dies, and with it the callers.
        let (commands, inbox) = unbounded::<Envelope>();
        let (ready_tx, ready) = bounded::<Result<(DecoderSpec, String), EngineError>>(1);
        let fault = Arc::new(OnceLock::new());
        let sampled = Arc::new(AtomicU64::new(0));
        let (thread_fault, thread_sampled) = (fault.clone(), sampled.clone());
        let body = move || {
            let _reason = crate::driver::FaultOnPanic(thread_fault);
            crate::driver::lower_priority(options.nice);
            let backend = match make() {
                Ok(backend) => backend,
                Err(error) => {
                    // The starter waits for exactly this message.
                    let _ = ready_tx.send(Err(error));
                    return;
                }
            };
            let limits = Limits {
                max_running: options.max_running.max(1),
                max_jobs: options.max_jobs.max(1),
                max_step_tokens: options.max_step_tokens.max(1),
                max_context: backend.spec().max_context,
            };
            // A starter that went away is seen as a closed command queue.
            let _ = ready_tx.send(Ok((backend.spec().clone(), backend.numerics())));
            Driver::new(backend, limits, options.keep_stale_kv, thread_sampled).run(&inbox);
        };
        std::thread::Builder::new()
            .name("engine".into())
            .spawn(body)
            .map_err(|e| EngineError::Device(format!("cannot start the engine's thread: {e}")))?;
        let (spec, numerics) =
            ready.recv().map_err(|_| EngineError::Stopped("it ended while the backend was being made".into()))??;
        let shared = Shared {
            commands,
            places: Arc::new(Semaphore::new(options.queue.max(1))),
            jobs: Arc::new(Semaphore::new(options.max_jobs.max(1))),
            sessions: AtomicU64::new(0),
            spec,
            numerics,
            fault,
            sampled,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The architecture.
    #[must_use]
    pub fn spec(&self) -> &DecoderSpec {
        &self.shared.spec
    }

    /// Kernel path, dtype and whatever else decides bits, one line.
    #[must_use]
    pub fn numerics(&self) -> &str {
        &self.shared.numerics
    }

    /// Tokens sampled since the start.
    #[must_use]
    pub fn tokens_sampled(&self) -> u64 {
        self.shared.sampled.load(Ordering::Relaxed)
    }

    /// An empty session. Nothing is allocated for it before its first generation.
    #[must_use]
    pub fn session(&self) -> Session {
        let id = SessionId(self.shared.sessions.fetch_add(1, Ordering::Relaxed));
        Session { engine: self.clone(), id, alive: Arc::new(()), broken: false }
    }

    /// Runs `f` with the backend on the engine's thread between two decode steps and gives its result. If it changes
    /// weights, the label is taken away and every sequence recomputes its keys and values before its next token.
    pub async fn with_backend<R, F>(&self, f: F) -> Result<R, EngineError>
    where
        R: Send + 'static,
        F: FnOnce(&mut dyn Backend) -> R + Send + 'static,
    {
        self.with_core(move |core| core.with_backend(f)).await
    }

    /// Which weights are in memory, version 0 at first; `None` after a change that nobody has named yet.
    pub async fn label(&self) -> Result<Option<Label>, EngineError> {
        self.with_core(|core| core.label).await
    }

    /// [`EngineHandle::with_backend`] for whoever changes weights: `f` and naming what it made are one command, so that no
    /// token is sampled from unnamed weights in between. Where `f` fails nothing is named.
    pub async fn advance<R, E, F>(&self, version: u64, f: F) -> Result<Result<(R, Label), E>, EngineError>
    where
        R: Send + 'static,
        E: Send + 'static,
        F: FnOnce(&mut dyn Backend) -> Result<R, E> + Send + 'static,
    {
        self.with_core(move |core| {
            let made = match core.with_backend(f) {
                Ok(made) => made,
                Err(error) => return Ok(Err(error)),
            };
            let label = Label { version, digest: core.backend.digest()? };
            core.label = Some(label);
            Ok(Ok((made, label)))
        })
        .await?
    }

    /// Names the weights in memory.
    pub async fn name(&self, version: u64) -> Result<Label, EngineError> {
        self.with_core(move |core| {
            let label = Label { version, digest: core.backend.digest()? };
            core.label = Some(label);
            Ok(label)
        })
        .await?
    }

    /// As [`EngineHandle::name`], and gives the weights out.
    pub async fn snapshot(&self, version: u64) -> Result<(WeightSet, Label), EngineError> {
        self.with_core(move |core| {
            let weights = core.backend.export()?;
            let label = Label { version, digest: weights.digest() };
            core.label = Some(label);
            Ok((weights, label))
        })
        .await?
    }

    /// Takes these weights in under a version's name.
    pub async fn load(&self, version: u64, weights: WeightSet) -> Result<Label, EngineError> {
        self.with_core(move |core| {
            let label = Label { version, digest: weights.digest() };
            core.with_backend(|backend| backend.import_named(&weights, label.digest))?;
            core.label = Some(label);
            Ok(label)
        })
        .await?
    }

    /// Puts the weights in memory into a slot of the ring under their version.
    ///
    /// Errors: [`EngineError::Input`] when the engine does not hold that version; those of the ring.
    pub async fn publish(&self, ring: Arc<dyn WeightRing>, slot: u32, version: u64) -> Result<Label, EngineError> {
        self.with_core(move |core| {
            let label = core.expect(version)?;
            if ring.publish_name(slot, version, label.digest)? {
                return Ok(label);
            }
            ring.publish(slot, version, &Named::new(core.backend.as_ref(), label.digest)?)?;
            Ok(label)
        })
        .await?
    }

    /// Moves to a published version; nothing is copied where the engine already holds it, by version and digest, or where it is
    /// the learner's own and has gone on to a newer one.
    ///
    /// Errors: [`EngineError::Input`] when the digest is not the one announced; those of the ring.
    pub async fn swap(&self, ring: Arc<dyn WeightRing>, slot: u32, version: u64, want: u64) -> Result<(), EngineError> {
        self.with_core(move |core| {
            let ahead = ring.shares_engine() && core.label.is_some_and(|held| held.version > version);
            if ahead || core.label == Some(Label { version, digest: want }) {
                return Ok(());
            }
            let weights = ring.fetch(slot, version)?;
            let got = weights.digest();
            if got != want {
                return Err(wrong_digest("swap", version, got, want));
            }
            core.with_backend(|backend| backend.import_named(&weights, got))?;
            core.label = Some(Label { version, digest: got });
            Ok(())
        })
        .await?
    }

    /// Flips one bit of one weight behind the label's back: the fault that exactness checks must find.
    pub async fn flip_weight_bit(&self, tensor: &str, index: usize, bit: u32) -> Result<(), EngineError> {
        let tensor = tensor.to_owned();
        self.with_core(move |core| {
            let label = core.label;
            let mut weights = core.backend.export()?;
            let value = weights.0.get_mut(&tensor).and_then(|t| t.data.get_mut(index));
            let Some(value) = value else { return Err(EngineError::Input(format!("no weight {index} in {tensor}"))) };
            *value = f32::from_bits(value.to_bits() ^ (1 << (bit % 32)));
            core.with_backend(|backend| backend.import(&weights))?;
            core.label = label;
            Ok(())
        })
        .await?
    }

    async fn with_core<R, F>(&self, f: F) -> Result<R, EngineError>
    where
        R: Send + 'static,
        F: FnOnce(&mut Core) -> R + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let run = move |core: &mut Core| {
            // A caller that no longer waits has no use for the result.
            let _ = reply.send(f(core));
        };
        self.send(Command::Run(Box::new(run))).await?;
        answer.await.map_err(|_| self.stopped())
    }

    async fn send(&self, command: Command) -> Result<(), EngineError> {
        let Ok(place) = self.shared.places.clone().acquire_owned().await else { return Err(self.stopped()) };
        self.shared.commands.send(Envelope { command, _place: place }).map_err(|_| self.stopped())
    }

    fn stopped(&self) -> EngineError {
        let reason = self.shared.fault.get().cloned();
        EngineError::Stopped(reason.unwrap_or_else(|| "its thread has ended".into()))
    }
}

fn wrong_digest(what: &str, version: u64, got: u64, want: u64) -> EngineError {
    EngineError::Input(format!("{what} of version {version}: the weights have digest {got:016x}, expected {want:016x}"))
}

/// One sequence over an episode's turns. Its keys and values stay, so that a turn only computes what is new.
#[derive(Debug)]
pub struct Session {
    engine: EngineHandle,
    id: SessionId,
    alive: Arc<()>,
    broken: bool,
}

impl Session {
    /// Appends `tokens` (a prompt, a tool's answer) and samples until a stop or the budget.
    ///
    /// Waits for a place (H2). A future dropped before its end closes the session.
    ///
    /// Errors: [`EngineError::Input`] for a context that cannot be, [`EngineError::Capacity`] when the sequence does not
    /// fit into memory even alone, [`EngineError::NonFinite`] for broken logits.
    pub async fn generate(&mut self, tokens: &[u32], decoding: Decoding) -> Result<Completion, EngineError> {
        let answer = self.begin(tokens, decoding, None).await?;
        self.end(answer).await
    }

    /// Hands a generation to the engine.
    pub(crate) async fn begin(
        &mut self,
        tokens: &[u32],
        decoding: Decoding,
        sink: Option<mpsc::Sender<Sampled>>,
    ) -> Result<oneshot::Receiver<Result<Completion, EngineError>>, EngineError> {
        if self.broken {
            return Err(EngineError::Input("this session's last generation was cancelled or failed".into()));
        }
        self.broken = true;
        let Ok(place) = self.engine.shared.jobs.clone().acquire_owned().await else { return Err(self.engine.stopped()) };
        let (reply, answer) = oneshot::channel();
        let command = GenerateCommand {
            session: self.id,
            alive: Arc::downgrade(&self.alive),
            append: tokens.to_vec(),
            decoding,
            sink,
            reply,
            place,
        };
        self.engine.send(Command::Generate(Box::new(command))).await?;
        Ok(answer)
    }

    /// Waits for its end.
    pub(crate) async fn end(
        &mut self,
        answer: oneshot::Receiver<Result<Completion, EngineError>>,
    ) -> Result<Completion, EngineError> {
        let done = answer.await.map_err(|_| self.engine.stopped())?;
        self.broken = done.is_err();
        done
    }

    /// Its engine.
    #[must_use]
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }
}
