//! Trying again what failed for a passing reason. Small enough to own: the delays are the crate's one backoff, seeded and
//! on tokio's clock, which the ready-made retry crates' are not.
use crate::backoff::{BackoffPolicy, Jitter};
use std::future::Future;
use std::time::Duration;
use tokio::time::sleep;

/// How often and how long apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Tries in all, at least one. Default 3.
    pub tries: u32,
    /// Pauses between them. Default 0.1 s doubling to 2 s, with jitter.
    pub backoff: BackoffPolicy,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let backoff =
            BackoffPolicy { base: Duration::from_millis(100), max: Duration::from_secs(2), jitter: 0.5, first_at_once: false };
        Self { tries: 3, backoff }
    }
}

/// Calls `attempt` (with its number, from 1) until it succeeds, fails for a reason that is not `retryable`, or has used
/// up its tries; the last error is returned. `seed` is that of the jitter. The caller bounds the time of each attempt.
pub async fn retry<T, E, F: Future<Output = Result<T, E>>>(
    policy: &RetryPolicy,
    seed: u64,
    retryable: impl Fn(&E) -> bool,
    mut attempt: impl FnMut(u32) -> F,
) -> Result<T, E> {
    let mut jitter = Jitter::new(seed);
    let mut number = 1;
    loop {
        match attempt(number).await {
            Ok(value) => return Ok(value),
            Err(error) if number >= policy.tries || !retryable(&error) => return Err(error),
            Err(_) => sleep(policy.backoff.delay(number, &mut jitter)).await,
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn tries_three_times_with_growing_pauses() {
        let started = Instant::now();
        let mut at = Vec::new();
        let result: Result<(), u32> = retry(
            &RetryPolicy::default(),
            1,
            |_| true,
            |n| {
                at.push(started.elapsed().as_millis());
                async move { Err(n) }
            },
        )
        .await;
        assert_eq!(result, Err(3));
        assert!((50..=102).contains(&at[1]) && (100..=204).contains(&(at[2] - at[1])), "{at:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn stops_at_success_and_at_what_cannot_be_retried() {
        let flaky = |n| async move { if n < 2 { Err("busy") } else { Ok(n) } };
        assert_eq!(retry(&RetryPolicy::default(), 1, |_| true, flaky).await, Ok(2));
        let mut tries = 0;
        let refused: Result<(), _> = retry(
            &RetryPolicy::default(),
            1,
            |e| *e != "refused",
            |_| {
                tries += 1;
                async { Err("refused") }
            },
        )
        .await;
        assert_eq!((refused, tries), (Err("refused"), 1));
    }
}
