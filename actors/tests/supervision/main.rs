//! Supervision of real actors and real processes.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "outside of `#[test]` functions the lint does not see that this is a test"
)]
mod actors;
mod orphans;
mod processes;

use cohort_actors::backoff::BackoffPolicy;
use cohort_actors::{Strategy, SupervisionPolicy};
use std::time::Duration;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what}: nothing within {SOON:?}"))
}

fn policy(strategy: Strategy, max_restarts: u32) -> SupervisionPolicy {
    let backoff =
        BackoffPolicy { base: Duration::from_millis(5), max: Duration::from_millis(20), jitter: 0.5, first_at_once: true };
    SupervisionPolicy { strategy, max_restarts, backoff, ..SupervisionPolicy::default() }
}
