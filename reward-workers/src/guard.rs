//! What stands between a group and a grader that may be slow, down or wrong: tries with backoff, and a circuit breaker.
//!
//! Invariants
//! - **B1** while the breaker is open nothing reaches the grader.
//! - **B2** a call takes at most `attempts` tries of at most `deadline` each, and waits at most `patience` between them;
//!   then it fails, as retryable.
//! - **B3** an answer that is unusable is no failure of the connection: it opens no breaker and is not asked for again.
use cohort_actors::backoff::{BackoffPolicy, Jitter};
use cohort_actors::{Breaker, BreakerPolicy, CallError};
use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::sleep;
use tracing::debug;

/// Why a try failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another try may succeed: unreachable, late, overloaded, died.
    Retryable(String),
    /// Another try would fail the same way: the grader answered, and the answer is unusable.
    Fatal(String),
}

impl Failure {
    /// The reason.
    pub(crate) fn why(&self) -> &str {
        match self {
            Self::Retryable(why) | Self::Fatal(why) => why,
        }
    }

    /// Whether another try may succeed.
    pub(crate) fn retryable(&self) -> bool {
        matches!(self, Self::Retryable(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

/// How often and how long to try.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuardOptions {
    /// Tries, the first included.
    pub(crate) attempts: u32,
    /// Deadline of a try.
    pub(crate) deadline: Duration,
    /// A try that takes longer counts against the breaker, whatever it returned.
    pub(crate) slow_after: Duration,
    /// Longest total wait between tries, an open breaker included.
    pub(crate) patience: Duration,
    /// Delays between tries.
    pub(crate) backoff: BackoffPolicy,
}

/// Guards one grader. Shared by all groups that it grades.
pub(crate) struct Guard {
    options: GuardOptions,
    breaker: Breaker,
    jitter: Mutex<Jitter>,
}

impl Guard {
    /// Checks the options.
    pub(crate) fn new(name: &str, options: GuardOptions) -> Result<Self, String> {
        if options.attempts == 0 {
            return Err("attempts = 0: at least one try is needed".to_owned());
        }
        let policy = BreakerPolicy { slow_after: options.slow_after, ..BreakerPolicy::default() };
        let jitter = Mutex::new(Jitter::new(u64::from(std::process::id())));
        Ok(Self { options, breaker: Breaker::new(name, policy), jitter })
    }

    /// The longest that a call may take (B2).
    pub(crate) fn longest(&self) -> Duration {
        self.options.deadline.saturating_mul(self.options.attempts).saturating_add(self.options.patience)
    }

    /// The breaker's state in one word, for beats.
    pub(crate) fn state(&self) -> String {
        self.breaker.phase().to_string()
    }

    /// Tries until a try succeeds, fails for good, or tries and patience are spent.
    pub(crate) async fn call<T, F, W>(&self, mut attempt: F) -> Result<T, Failure>
    where
        F: FnMut() -> W,
        W: Future<Output = Result<T, Failure>>,
    {
        let (mut tries, mut waited) = (0, Duration::ZERO);
        loop {
            // Not even made while the breaker is open.
            let attempt = async { attempt().await };
            let (why, pause) = match self.breaker.call_where(self.options.deadline, attempt, Failure::retryable).await {
                Ok(answer) => return Ok(answer),
                Err(CallError::Failed { source: Failure::Fatal(why), .. }) => return Err(Failure::Fatal(why)),
                Err(CallError::Open { retry_after, last, .. }) => {
                    (format!("its circuit breaker is open after earlier failures, the last of which was: {last}"), retry_after)
                }
                Err(CallError::Failed { source: Failure::Retryable(why), .. }) => {
                    tries += 1;
                    (why, self.delay(tries))
                }
                Err(CallError::Deadline { after, .. }) => {
                    tries += 1;
                    (format!("no answer within {after:?}"), self.delay(tries))
                }
            };
            debug!(target: "cohort::reward", grader = self.breaker.name(), tries, error = why, "try_failed");
            if tries == self.options.attempts || waited + pause > self.options.patience {
                return Err(Failure::Retryable(if tries > 1 { format!("{why} (tried {tries} times)") } else { why }));
            }
            sleep(pause).await;
            waited += pause;
        }
    }

    fn delay(&self, tries: u32) -> Duration {
        self.options.backoff.delay(tries, &mut self.jitter.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A config number of seconds as a duration.
pub(crate) fn seconds(key: &str, value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("{key} = {value}: expected a number of seconds above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tokio::time::Instant;

    fn guard(attempts: u32, patience: f64) -> Guard {
        let options = GuardOptions {
            attempts,
            deadline: Duration::from_secs(1),
            slow_after: Duration::from_secs(1),
            patience: Duration::from_secs_f64(patience),
            backoff: BackoffPolicy { jitter: 0.0, ..BackoffPolicy::RECONNECT },
        };
        Guard::new("judge", options).unwrap()
    }

    async fn ask(guard: &Guard, answers: &[Result<u32, Failure>]) -> (Result<u32, Failure>, usize) {
        let asked = Cell::new(0);
        let result = guard
            .call(|| async {
                // Counts what reaches the grader: a try that the breaker holds back is never polled.
                let answer = answers[asked.get().min(answers.len() - 1)].clone();
                asked.set(asked.get() + 1);
                answer
            })
            .await;
        (result, asked.get())
    }

    fn down() -> Result<u32, Failure> {
        Err(Failure::Retryable("down".to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn tries_with_growing_waits_until_an_answer() {
        let begun = Instant::now();
        assert_eq!(ask(&guard(4, 9.0), &[down(), down(), down(), Ok(7)]).await, (Ok(7), 4));
        assert_eq!(begun.elapsed().as_millis() / 10, (50 + 100 + 200) / 10);
        let (result, asked) = ask(&guard(2, 9.0), &[down()]).await;
        assert_eq!((result, asked), (Err(Failure::Retryable("down (tried 2 times)".to_owned())), 2));
        let unusable = Err(Failure::Fatal("nonsense".to_owned()));
        assert_eq!(ask(&guard(4, 9.0), &[unusable.clone(), Ok(1)]).await, (unusable, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_an_open_breaker_as_long_as_it_has_patience() {
        let guard = guard(6, 30.0);
        // Five failures open it; the sixth try waits a second and is answered.
        assert_eq!(ask(&guard, &[down(), down(), down(), down(), down(), Ok(1)]).await, (Ok(1), 6));
        // Five failures and the waits between them take 1.55 s; the rest of the open time is more than it has left.
        let impatient = self::guard(9, 1.6);
        let (result, _) = ask(&impatient, &[down()]).await;
        assert!(result.unwrap_err().why().contains("circuit breaker is open"));
        assert_eq!(impatient.state(), "open");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let result = guard(1, 1.0).call(std::future::pending::<Result<(), Failure>>).await;
        assert_eq!(result, Err(Failure::Retryable("no answer within 1s".to_owned())));
        let (begun, guard) = (Instant::now(), guard(4, 1.0));
        guard.call(std::future::pending::<Result<(), Failure>>).await.unwrap_err();
        assert!(begun.elapsed() > Duration::from_secs(4) && begun.elapsed() <= guard.longest(), "{:?}", begun.elapsed());
    }

    #[test]
    fn seconds_are_above_zero() {
        assert_eq!(seconds("t", 0.25), Ok(Duration::from_millis(250)));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert!(seconds("t", bad).unwrap_err().contains("above 0"), "{bad}");
        }
    }
}
