//! The decisions of a circuit breaker: pure, on a clock that the caller holds.
//!
//! ```text
//!            5 failures in a row, or >= 50 % of >= 20 calls in 10 s
//!   closed ------------------------------------------------------------> open: rejects at once, for 1 s
//!      ^                                                                   |        ^
//!      | 3 successes                                        wait is over   v        | 1 failure: wait doubles, to 60 s
//!      +--------------------------------------------------------------- half-open: at most 3 probes
//! ```
//!
//! Invariants
//! - **B1** while open no call is let through; the first after the wait is a probe.
//! - **B2** in a half-open phase at most `probes` calls are let through that were not cancelled.
//! - **B3** the outcome of a call counts only in the phase that let it through.
//! - **B4** a call slower than `slow_after` counts as a failure, whatever it returned.
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// When to open and when to close.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerPolicy {
    /// Failures in a row that open it. Default 5.
    pub consecutive_failures: u32,
    /// Length of the window of the failure rate. Default 10 s.
    pub window: Duration,
    /// Calls in the window below which the rate says nothing. Default 20.
    pub min_calls: u32,
    /// Part of the calls in the window whose failure opens it. Default 0.5.
    pub failure_rate: f64,
    /// A call that takes longer has failed. Default 10 s.
    pub slow_after: Duration,
    /// Calls let through while half-open. Default 3.
    pub probes: u32,
    /// Successful probes that close it; at most `probes`. Default 3.
    pub successes_to_close: u32,
    /// First wait while open. Default 1 s.
    pub first_wait: Duration,
    /// Longest wait. Default 60 s.
    pub max_wait: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            window: Duration::from_secs(10),
            min_calls: 20,
            failure_rate: 0.5,
            slow_after: Duration::from_secs(10),
            probes: 3,
            successes_to_close: 3,
            first_wait: Duration::from_secs(1),
            max_wait: Duration::from_secs(60),
        }
    }
}

/// The phase in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Calls pass.
    Closed,
    /// Calls are rejected.
    Open,
    /// A few calls pass, to see.
    HalfOpen,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        })
    }
}

/// Leave to make one call; hand it back with the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    phase: u64,
    at: Instant,
}

/// Answer to a request to call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Call, then report.
    Call(Permit),
    /// Do not call.
    Reject {
        /// When asking again may help.
        retry_after: Duration,
    },
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Success,
    /// It was not.
    Failure,
    /// The caller went away; says nothing about the callee.
    Cancelled,
}

/// The breaker's memory.
#[derive(Debug)]
pub struct BreakerState {
    policy: BreakerPolicy,
    /// Counts the phases, so that late outcomes are told apart (B3).
    number: u64,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Closed { failures_in_a_row: u32, window: VecDeque<(Instant, bool)>, failed: usize },
    Open { until: Instant, wait: Duration },
    HalfOpen { let_through: u32, successes: u32, wait: Duration },
}

impl BreakerState {
    /// Closed.
    #[must_use]
    pub fn new(policy: BreakerPolicy) -> Self {
        Self { policy, number: 0, memory: closed() }
    }

    /// Whether a call may be made at `now`.
    pub fn request(&mut self, now: Instant) -> Decision {
        if let Memory::Open { until, wait } = self.memory {
            if now < until {
                return Decision::Reject { retry_after: until - now };
            }
            self.become_(Memory::HalfOpen { let_through: 0, successes: 0, wait });
        }
        if let Memory::HalfOpen { let_through, wait, .. } = &mut self.memory {
            if *let_through >= self.policy.probes {
                // The probes decide; by then at the latest a probe that never ends has run into its deadline.
                return Decision::Reject { retry_after: (*wait).min(self.policy.first_wait) };
            }
            *let_through += 1;
        }
        Decision::Call(Permit { phase: self.number, at: now })
    }

    /// Takes in how the call of `permit` ended at `now`.
    pub fn report(&mut self, now: Instant, permit: Permit, outcome: Outcome) {
        if permit.phase != self.number {
            return;
        }
        let slow = now.saturating_duration_since(permit.at) > self.policy.slow_after;
        let failed = match outcome {
            Outcome::Cancelled => {
                if let Memory::HalfOpen { let_through, .. } = &mut self.memory {
                    *let_through = let_through.saturating_sub(1);
                }
                return;
            }
            Outcome::Success => slow,
            Outcome::Failure => true,
        };
        match &mut self.memory {
            Memory::Closed { failures_in_a_row, window, failed: failures } => {
                *failures_in_a_row = if failed { failures_in_a_row.saturating_add(1) } else { 0 };
                window.push_back((now, failed));
                *failures += usize::from(failed);
                while let Some(&(at, old)) = window.front()
                    && now.saturating_duration_since(at) >= self.policy.window
                {
                    window.pop_front();
                    *failures -= usize::from(old);
                }
                if trips(&self.policy, *failures_in_a_row, window.len(), *failures) {
                    self.open(now, self.policy.first_wait);
                }
            }
            Memory::HalfOpen { wait, .. } if failed => {
                let doubled = wait.saturating_mul(2).min(self.policy.max_wait);
                self.open(now, doubled);
            }
            Memory::HalfOpen { successes, .. } => {
                *successes += 1;
                if *successes >= self.policy.successes_to_close.min(self.policy.probes) {
                    self.become_(closed());
                }
            }
            // No permit has this number.
            Memory::Open { .. } => {}
        }
    }

    /// The phase as callers at `now` find it.
    #[must_use]
    pub fn phase(&self, now: Instant) -> Phase {
        match self.memory {
            Memory::Closed { .. } => Phase::Closed,
            Memory::Open { until, .. } if now < until => Phase::Open,
            Memory::Open { .. } | Memory::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    fn open(&mut self, now: Instant, wait: Duration) {
        self.become_(Memory::Open { until: now + wait, wait });
    }

    fn become_(&mut self, memory: Memory) {
        self.number += 1;
        self.memory = memory;
    }
}

fn closed() -> Memory {
    Memory::Closed { failures_in_a_row: 0, window: VecDeque::new(), failed: 0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts of calls in a window")]
fn trips(policy: &BreakerPolicy, failures_in_a_row: u32, calls: usize, failures: usize) -> bool {
    failures_in_a_row >= policy.consecutive_failures
        || (calls >= policy.min_calls as usize && failures > 0 && failures as f64 >= policy.failure_rate * calls as f64)
}
