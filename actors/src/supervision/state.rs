//! The decisions of a supervisor: pure, on a clock that the caller holds.
//!
//! Invariants
//! - **R1** within any window no more than `max_restarts` failures of one budget are answered by a restart; the next one
//!   escalates, and after an escalation nothing is started.
//! - **R2** the first restart is immediate, further ones wait as the backoff says; a child that stayed up for
//!   `stable_after` starts over at the immediate one.
//! - **R3** an escalation names the first cause in the window: what failed later often failed because of it.
//! - **R4** in a group strategy nothing starts while a child of the group is still stopping; starts follow the order in
//!   which children were added, stops the reverse.
use crate::backoff::{BackoffPolicy, Jitter};
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// A child's name within its supervisor, kept over its restarts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildId(pub Arc<str>);

impl<S: AsRef<str>> From<S> for ChildId {
    fn from(name: S) -> Self {
        Self(name.as_ref().into())
    }
}

impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which children a failure restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The one that failed.
    OneForOne,
    /// All.
    OneForAll,
    /// The one that failed and those added after it.
    RestForOne,
}

/// When a child is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Whenever it ends.
    Permanent,
    /// When it ends in failure.
    Transient,
    /// Never.
    Temporary,
}

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Its work is done.
    Done,
    /// It failed; starting it again may help.
    Failed(String),
    /// It failed and would again (bad configuration): do not restart it, tell whoever is above.
    Fatal(String),
}

/// How restarts are limited and spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SupervisionPolicy {
    /// Whom a failure restarts.
    pub strategy: Strategy,
    /// Restarts within a window; the next failure escalates. Default 20.
    pub max_restarts: u32,
    /// Length of the window. Default 60 s.
    pub window: Duration,
    /// Delays. Default: the first restart at once, then 0.1 s doubling to 2 s, with jitter.
    pub backoff: BackoffPolicy,
    /// Time up after which a failure counts as the first of a new series of delays. Default 10 s.
    pub stable_after: Duration,
}

impl Default for SupervisionPolicy {
    fn default() -> Self {
        Self {
            strategy: Strategy::OneForOne,
            max_restarts: 20,
            window: Duration::from_secs(60),
            backoff: BackoffPolicy::RESTART,
            stable_after: Duration::from_secs(10),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A child is to be supervised from now on, and started. A name that is in use is ignored.
    Add(ChildId, Restart),
    /// A child is to be stopped and forgotten.
    Remove(ChildId),
    /// A child that was started has ended, or could not be started.
    Exited(ChildId, Exit),
    /// Time has passed ([`SupervisionState::next_wake`]).
    Tick,
    /// Stop all children; restart none.
    Stop,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start it; `incarnation` counts its starts from 0.
    Start {
        /// Which child.
        child: ChildId,
        /// Which start.
        incarnation: u32,
    },
    /// Stop it, and report [`Event::Exited`] when it has ended.
    Stop(ChildId),
    /// Tell whoever is above that restarts do not help. Comes once; stops of the remaining children follow.
    Escalate(Escalation),
}

/// Why a supervisor gave up.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Escalation {
    /// The restart budget is spent.
    #[error(
        "{child} failed {failures} times within {window:?}, {max_restarts} restarts are allowed; \
         first cause: {first_child}: {first_cause}; last: {last_cause}"
    )]
    TooManyRestarts {
        /// Whose failure was the last.
        child: ChildId,
        /// Failures in the window, the last one included.
        failures: u32,
        /// Restarts allowed in it.
        max_restarts: u32,
        /// Its length.
        window: Duration,
        /// Whose failure was the first in the window.
        first_child: ChildId,
        /// Its cause: the root, in all likelihood.
        first_cause: String,
        /// The cause of the last failure.
        last_cause: String,
    },
    /// A child said that restarting it is of no use.
    #[error("{child} cannot run: {cause}")]
    Fatal {
        /// Which.
        child: ChildId,
        /// Why.
        cause: String,
    },
}

/// The supervisor's memory.
#[derive(Debug)]
pub struct SupervisionState {
    policy: SupervisionPolicy,
    jitter: Jitter,
    /// In the order in which they were added.
    children: Vec<Child>,
    /// The budget of group strategies.
    shared: Budget,
    mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Supervising,
    Stopping,
    Escalated,
}

#[derive(Debug)]
struct Child {
    id: ChildId,
    restart: Restart,
    phase: Phase,
    starts: u32,
    budget: Budget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Up since then.
    Running { since: Instant },
    /// Told to stop; what to do once it has.
    Stopping(AfterStop),
    /// To be started then.
    Waiting { due: Instant },
    /// Ended for good.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterStop {
    Start { due: Instant },
    End,
    Forget,
}

/// Failures that count towards one limit.
#[derive(Debug, Default)]
struct Budget {
    /// Failures answered by a restart, within the window.
    failures: VecDeque<Failure>,
    /// Failures since the last stable run; decides the delay.
    series: u32,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    child: ChildId,
    cause: String,
}

impl SupervisionState {
    /// Without children. `seed` is that of the jitter.
    #[must_use]
    pub fn new(policy: SupervisionPolicy, seed: u64) -> Self {
        let (jitter, shared) = (Jitter::new(seed), Budget::default());
        Self { policy, jitter, children: Vec::new(), shared, mode: Mode::Supervising }
    }

    /// Takes in what happened at `now` and appends what to do to `out`.
    pub fn on_event(&mut self, now: Instant, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Add(id, restart) => self.add(now, id, restart),
            Event::Remove(id) => self.remove(&id, out),
            Event::Exited(id, exit) => self.exited(now, &id, exit, out),
            Event::Tick => {}
            Event::Stop => self.stop(Mode::Stopping, out),
        }
        self.start_due(now, out);
    }

    /// When the next [`Event::Tick`] is needed; `None` while only events of children can change anything.
    #[must_use]
    pub fn next_wake(&self) -> Option<Instant> {
        if self.mode != Mode::Supervising || self.held_back() {
            return None;
        }
        self.children.iter().filter_map(|c| if let Phase::Waiting { due } = c.phase { Some(due) } else { None }).min()
    }

    /// Whether no child runs or will run again.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.children.iter().all(|c| c.phase == Phase::Ended)
    }

    /// How many times a child was restarted.
    #[must_use]
    pub fn restarts(&self, id: &ChildId) -> Option<u32> {
        self.children.iter().find(|c| c.id == *id).map(|c| c.starts.saturating_sub(1))
    }

    /// One word on a child, for `status`: running, stopping, waiting, ended.
    #[must_use]
    pub fn phase(&self, id: &ChildId) -> Option<&'static str> {
        self.children.iter().find(|c| c.id == *id).map(|c| match c.phase {
            Phase::Running { .. } => "running",
            Phase::Stopping(_) => "stopping",
            Phase::Waiting { .. } => "waiting",
            Phase::Ended => "ended",
        })
    }

    /// Names of all children, in the order in which they were added.
    pub fn children(&self) -> impl Iterator<Item = &ChildId> {
        self.children.iter().map(|c| &c.id)
    }

    fn add(&mut self, now: Instant, id: ChildId, restart: Restart) {
        if self.mode == Mode::Supervising && self.position(&id).is_none() {
            let phase = Phase::Waiting { due: now };
            self.children.push(Child { id, restart, phase, starts: 0, budget: Budget::default() });
        }
    }

    fn remove(&mut self, id: &ChildId, out: &mut Vec<Command>) {
        let Some(at) = self.position(id) else { return };
        match self.children[at].phase {
            Phase::Running { .. } => {
                self.children[at].phase = Phase::Stopping(AfterStop::Forget);
                out.push(Command::Stop(id.clone()));
            }
            Phase::Stopping(_) => self.children[at].phase = Phase::Stopping(AfterStop::Forget),
            Phase::Waiting { .. } | Phase::Ended => drop(self.children.remove(at)),
        }
    }

    fn exited(&mut self, now: Instant, id: &ChildId, exit: Exit, out: &mut Vec<Command>) {
        let Some(at) = self.position(id) else { return };
        match self.children[at].phase {
            Phase::Stopping(AfterStop::Forget) => drop(self.children.remove(at)),
            Phase::Stopping(AfterStop::End) => self.children[at].phase = Phase::Ended,
            Phase::Stopping(AfterStop::Start { due }) => self.children[at].phase = Phase::Waiting { due },
            Phase::Running { since } => self.ended_by_itself(now, at, since, exit, out),
            // A report that comes twice.
            Phase::Waiting { .. } | Phase::Ended => {}
        }
    }

    fn ended_by_itself(&mut self, now: Instant, at: usize, since: Instant, exit: Exit, out: &mut Vec<Command>) {
        let child = &mut self.children[at];
        let cause = match (exit, child.restart) {
            (Exit::Fatal(cause), _) => {
                child.phase = Phase::Ended;
                out.push(Command::Escalate(Escalation::Fatal { child: child.id.clone(), cause }));
                return self.stop(Mode::Escalated, out);
            }
            (Exit::Done, Restart::Permanent) => "it ended and should not have".to_owned(),
            (Exit::Done, _) | (Exit::Failed(_), Restart::Temporary) => {
                child.phase = Phase::Ended;
                return;
            }
            (Exit::Failed(cause), _) => cause,
        };
        let policy = self.policy;
        let failure = Failure { at: now, child: child.id.clone(), cause };
        let budget = match policy.strategy {
            Strategy::OneForOne => &mut child.budget,
            Strategy::OneForAll | Strategy::RestForOne => &mut self.shared,
        };
        match budget.spend(&policy, failure, now.saturating_duration_since(since)) {
            Ok(series) => {
                let due = now + policy.backoff.delay(series, &mut self.jitter);
                self.restart(at, due, out);
            }
            Err(escalation) => {
                self.children[at].phase = Phase::Ended;
                out.push(Command::Escalate(escalation));
                self.stop(Mode::Escalated, out);
            }
        }
    }

    /// Puts the failed child, and whom the strategy adds, on the way to a start at `due`.
    fn restart(&mut self, failed: usize, due: Instant, out: &mut Vec<Command>) {
        self.children[failed].phase = Phase::Waiting { due };
        let group = match self.policy.strategy {
            Strategy::OneForOne => return,
            Strategy::OneForAll => 0..self.children.len(),
            Strategy::RestForOne => failed..self.children.len(),
        };
        for child in self.children[group].iter_mut().rev() {
            match &mut child.phase {
                Phase::Running { .. } => {
                    child.phase = Phase::Stopping(AfterStop::Start { due });
                    out.push(Command::Stop(child.id.clone()));
                }
                Phase::Waiting { due: earlier } | Phase::Stopping(AfterStop::Start { due: earlier }) => {
                    *earlier = due.max(*earlier);
                }
                Phase::Stopping(AfterStop::End | AfterStop::Forget) | Phase::Ended => {}
            }
        }
    }

    fn start_due(&mut self, now: Instant, out: &mut Vec<Command>) {
        if self.mode != Mode::Supervising || self.held_back() {
            return;
        }
        for child in &mut self.children {
            if matches!(child.phase, Phase::Waiting { due } if due <= now) {
                child.phase = Phase::Running { since: now };
                out.push(Command::Start { child: child.id.clone(), incarnation: child.starts });
                child.starts = child.starts.saturating_add(1);
            }
        }
    }

    /// R4.
    fn held_back(&self) -> bool {
        self.policy.strategy != Strategy::OneForOne
            && self.children.iter().any(|c| matches!(c.phase, Phase::Stopping(AfterStop::Start { .. })))
    }

    fn stop(&mut self, mode: Mode, out: &mut Vec<Command>) {
        if self.mode == Mode::Supervising {
            self.mode = mode;
        }
        for child in self.children.iter_mut().rev() {
            child.phase = match child.phase {
                Phase::Running { .. } => {
                    out.push(Command::Stop(child.id.clone()));
                    Phase::Stopping(AfterStop::End)
                }
                Phase::Stopping(AfterStop::Forget) => Phase::Stopping(AfterStop::Forget),
                Phase::Stopping(_) => Phase::Stopping(AfterStop::End),
                Phase::Waiting { .. } | Phase::Ended => Phase::Ended,
            };
        }
    }

    fn position(&self, id: &ChildId) -> Option<usize> {
        self.children.iter().position(|c| c.id == *id)
    }
}

impl Budget {
    /// Counts a failure after `up` of running: its place in the present series, or the escalation it causes.
    fn spend(&mut self, policy: &SupervisionPolicy, failure: Failure, up: Duration) -> Result<u32, Escalation> {
        let now = failure.at;
        while self.failures.front().is_some_and(|f| now.saturating_duration_since(f.at) >= policy.window) {
            self.failures.pop_front();
        }
        if self.failures.len() >= policy.max_restarts as usize {
            let first = self.failures.front().unwrap_or(&failure);
            return Err(Escalation::TooManyRestarts {
                child: failure.child.clone(),
                failures: policy.max_restarts.saturating_add(1),
                max_restarts: policy.max_restarts,
                window: policy.window,
                first_child: first.child.clone(),
                first_cause: first.cause.clone(),
                last_cause: failure.cause,
            });
        }
        self.series = if up >= policy.stable_after { 1 } else { self.series.saturating_add(1) };
        self.failures.push_back(failure);
        Ok(self.series)
    }
}
