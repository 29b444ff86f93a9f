//! The breaker around real calls: shared by the callers of one backend, each call under a deadline.
use super::state::{BreakerPolicy, BreakerState, Decision, Outcome, Permit, Phase};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::time::timeout;
use tracing::warn;

/// Why a call gave nothing.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CallError<E> {
    /// The breaker is open: nothing was called.
    #[error("{name} keeps failing and is not called for another {retry_after:?}; last failure: {last}")]
    Open {
        /// Which backend.
        name: String,
        /// When asking again may help.
        retry_after: Duration,
        /// What it said last.
        last: String,
    },
    /// No answer in time.
    #[error("{name} did not answer within {after:?}")]
    Deadline {
        /// Which backend.
        name: String,
        /// How long was waited.
        after: Duration,
    },
    /// The call itself failed.
    #[error("{name}: {source}")]
    Failed {
        /// Which backend.
        name: String,
        /// How.
        source: E,
    },
}

/// A circuit breaker in front of one backend; clonable, all clones are one breaker.
#[derive(Clone)]
pub struct Breaker(Arc<Shared>);

struct Shared {
    name: String,
    memory: Mutex<Memory>,
}

struct Memory {
    state: BreakerState,
    last_failure: String,
}

impl Breaker {
    /// Closed, for the backend called `name` in messages.
    #[must_use]
    pub fn new(name: &str, policy: BreakerPolicy) -> Self {
        let memory = Memory { state: BreakerState::new(policy), last_failure: "none".to_owned() };
        Self(Arc::new(Shared { name: name.to_owned(), memory: Mutex::new(memory) }))
    }

    /// Calls, if the breaker lets it. Every error of `work` counts against the backend. Dropped half-way, the call counts
    /// neither way.
    pub async fn call<T, E: fmt::Display>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, CallError<E>> {
        self.call_where(deadline, work, |_| true).await
    }

    /// The same, where only errors for which `counts` holds count against the backend: a request that was wrong in itself
    /// says nothing about whom it was sent to.
    pub async fn call_where<T, E: fmt::Display>(
        &self,
        deadline: Duration,
        work: impl Future<Output = Result<T, E>>,
        counts: impl FnOnce(&E) -> bool,
    ) -> Result<T, CallError<E>> {
        let mut running = self.enter()?;
        match timeout(deadline, work).await {
            Ok(Ok(value)) => {
                running.end(Outcome::Success, None);
                Ok(value)
            }
            Ok(Err(source)) => {
                let outcome = if counts(&source) { Outcome::Failure } else { Outcome::Success };
                running.end(outcome, Some(source.to_string()));
                Err(CallError::Failed { name: self.0.name.clone(), source })
            }
            Err(_) => {
                running.end(Outcome::Failure, Some(format!("no answer within {deadline:?}")));
                Err(CallError::Deadline { name: self.0.name.clone(), after: deadline })
            }
        }
    }

    /// Closed, open or half-open.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().state.phase(now())
    }

    /// The backend's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    fn enter<E>(&self) -> Result<Running<'_>, CallError<E>> {
        let mut memory = self.lock();
        match memory.state.request(now()) {
            Decision::Call(permit) => Ok(Running { breaker: self, permit: Some(permit) }),
            Decision::Reject { retry_after } => {
                Err(CallError::Open { name: self.0.name.clone(), retry_after, last: memory.last_failure.clone() })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Valid after any panic: no step of the state machine panics half-way.
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("name", &self.0.name).field("phase", &self.phase()).finish()
    }
}

/// A call under way; dropped without an end, it was cancelled.
struct Running<'a> {
    breaker: &'a Breaker,
    permit: Option<Permit>,
}

impl Running<'_> {
    fn end(&mut self, outcome: Outcome, failure: Option<String>) {
        let Some(permit) = self.permit.take() else { return };
        let mut memory = self.breaker.lock();
        let before = memory.state.phase(now());
        memory.state.report(now(), permit, outcome);
        if let Some(failure) = failure {
            memory.last_failure = failure;
        }
        let after = memory.state.phase(now());
        if before != after {
            let last = memory.last_failure.clone();
            warn!(target: "cohort::breaker", name = self.breaker.0.name, from = %before, to = %after, last, "breaker_changed");
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled, None);
    }
}

/// Tokio's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const SECOND: Duration = Duration::from_secs(1);

    async fn fail(breaker: &Breaker) -> CallError<&'static str> {
        breaker.call(SECOND, async { Err::<(), _>("down") }).await.unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn open_calls_nobody_and_says_why() {
        let breaker = Breaker::new("judge", BreakerPolicy::default());
        for _ in 0..5 {
            assert!(matches!(fail(&breaker).await, CallError::Failed { .. }));
        }
        let calls = AtomicU32::new(0);
        let work = async {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok::<_, &str>(())
        };
        let rejected = breaker.call(SECOND, work).await.unwrap_err();
        assert_eq!(calls.load(Ordering::Relaxed), 0);
        assert_eq!(rejected.to_string(), "judge keeps failing and is not called for another 1s; last failure: down");
        tokio::time::advance(SECOND).await;
        assert_eq!(breaker.phase(), Phase::HalfOpen);
        for _ in 0..3 {
            breaker.call(SECOND, async { Ok::<_, &str>(()) }).await.unwrap();
        }
        assert_eq!(breaker.phase(), Phase::Closed);
    }

    /// The breaker's clock stands, so that it stays open; what a rejection takes is measured by the real one.
    #[tokio::test(start_paused = true)]
    async fn a_rejection_is_immediate() {
        let breaker = Breaker::new("judge", BreakerPolicy::default());
        for _ in 0..5 {
            fail(&breaker).await;
        }
        let mut took: Vec<Duration> = Vec::new();
        for _ in 0..10_000 {
            let begun = Instant::now();
            assert!(matches!(fail(&breaker).await, CallError::Open { .. }));
            took.push(begun.elapsed());
        }
        took.sort();
        println!("rejections: p50 {:?}, p99 {:?}", took[5000], took[9900]);
        assert!(took[9900] < Duration::from_millis(1), "{:?}", took[9900]);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_slowness_count_and_bad_requests_do_not() {
        let breaker = Breaker::new("judge", BreakerPolicy { slow_after: SECOND, ..BreakerPolicy::default() });
        for _ in 0..10 {
            let refused = breaker.call_where(SECOND, async { Err::<(), _>("400") }, |_| false).await;
            assert!(matches!(refused, Err(CallError::Failed { .. })));
        }
        assert_eq!(breaker.phase(), Phase::Closed);
        let silence = breaker.call(SECOND, std::future::pending::<Result<(), &str>>()).await;
        assert!(matches!(silence, Err(CallError::Deadline { .. })));
        for _ in 0..4 {
            let slow = async {
                tokio::time::sleep(2 * SECOND).await;
                Ok::<_, &str>(())
            };
            breaker.call(5 * SECOND, slow).await.unwrap();
        }
        assert_eq!(breaker.phase(), Phase::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_three_probes_and_a_cancelled_one_is_none() {
        let breaker = Breaker::new("judge", BreakerPolicy::default());
        for _ in 0..5 {
            fail(&breaker).await;
        }
        tokio::time::advance(SECOND).await;
        let probe = || {
            let breaker = breaker.clone();
            tokio::spawn(async move { breaker.call(60 * SECOND, std::future::pending::<Result<(), &str>>()).await })
        };
        let probes: Vec<_> = (0..3).map(|_| probe()).collect();
        tokio::task::yield_now().await;
        assert!(matches!(fail(&breaker).await, CallError::Open { .. }), "a fourth probe");
        for probe in probes {
            probe.abort();
            assert!(probe.await.is_err());
        }
        assert!(matches!(fail(&breaker).await, CallError::Failed { .. }), "three were cancelled: there is room again");
        assert_eq!(breaker.phase(), Phase::Open);
    }
}
