//! The coordinator's process as its agent watches it: whether it speaks, and how it is told to leave. The clock is the
//! caller's; only orders to the supervisor leave from here.
use super::{SILENCE, SILENCE_VARIABLE, children, news};
use cohort_actors::supervision::process::ProcessSupervisor;
use std::time::{Duration, Instant};

/// The coordinator, as its agent watches it.
pub(super) struct Watched {
    pid: Option<u32>,
    since: Instant,
    silence: news::Silence,
    draining: Draining,
}

/// The run was asked to stop.
#[derive(Debug, Default)]
struct Draining {
    /// When the coordinator must have left.
    by: Option<Instant>,
    /// The process that was told.
    told: Option<u32>,
}

impl Watched {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { pid: None, since: now, silence: news::Silence::new(now, silence_limit()), draining: Draining::default() }
    }

    pub(super) fn drain(&mut self) {
        self.draining.by = Some(Instant::now() + children::GRACE_COORDINATOR);
    }

    /// Whether it was asked to leave.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.by.is_some()
    }

    /// Notes the process of the coordinator; says whether it is another one.
    pub(super) fn restarted(&mut self, pid: Option<u32>) -> bool {
        let other = pid != self.pid;
        if other {
            self.pid = pid;
            self.since = Instant::now();
            self.silence.restart(self.since);
        }
        other
    }

    pub(super) async fn look(&mut self, supervisor: &ProcessSupervisor, last: Instant) {
        let now = Instant::now();
        let id = children::coordinator_id;
        if let Some(by) = self.draining.by {
            if now > by {
                // Nothing waits for ever: what it has not saved is in the ledger.
                supervisor.remove(id()).await;
                supervisor.kill(id(), "it did not leave in time").await;
            } else if last > self.since && self.draining.told != self.pid {
                // Not before it speaks: a SIGTERM that comes too early kills it.
                self.draining.told = self.pid;
                supervisor.terminate(id()).await;
            }
        } else if let Some(silent) = self.silence.look(now, last) {
            self.silence.restart(now);
            supervisor.kill(id(), format!("it said nothing for {:.1} s", silent.as_secs_f64())).await;
        }
    }
}

fn silence_limit() -> Duration {
    let given = std::env::var(SILENCE_VARIABLE).ok().and_then(|ms| ms.parse().ok());
    given.map_or(SILENCE, Duration::from_millis)
}
