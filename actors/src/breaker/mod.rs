//! Calls to things that may be down: a deadline on each, retries with backoff, and a circuit breaker that stops calling
//! what keeps failing. `state` decides, `call` carries out, `retry` repeats.
mod call;
#[cfg(test)]
mod model;
mod retry;
mod state;

pub use call::{Breaker, CallError};
pub use retry::{RetryPolicy, retry};
pub use state::{BreakerPolicy, BreakerState, Decision, Outcome, Permit, Phase};
