//! The coordinator's process as its agent watches it: whether it speaks, and how it is told to leave. The clock is the
//! caller's; only orders to the supervisor leave from here.
use super::{SILENCE, SILENCE_STOPPED, SILENCE_VARIABLE, children, news};
use cohort_actors::supervision::process::ProcessSupervisor;
use std::time::{Duration, Instant};

/// The coordinator, as its agent watches it.
pub(super) struct Watched {
    pid: Option<u32>,
    since: Instant,
    silence: news::Silence,
    limit: Duration,
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
        Self { pid: None, since: now, silence: news::Silence::new(now), limit: silence_limit(), draining: Draining::default() }
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
            return;
        }
        let silent = self.silence.look(now, last);
        let stopped = silent > SILENCE_STOPPED && self.pid.is_some_and(is_stopped);
        if silent > self.limit || stopped {
            self.silence.restart(now);
            let how = if stopped { " and is stopped" } else { "" };
            supervisor.kill(id(), format!("it said nothing for {:.1} s{how}", silent.as_secs_f64())).await;
        }
    }
}

/// Whether the system says that a process is stopped (SIGSTOP, a terminal's ^Z): it is not slow, and nothing moves in it.
fn is_stopped(pid: u32) -> bool {
    // `PID (NAME) STATE ..`, and a name may hold anything.
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.iter().rposition(|&b| b == b')').and_then(|end| stat.get(end + 2));
    state == Some(&b'T')
}

fn silence_limit() -> Duration {
    let given = std::env::var(SILENCE_VARIABLE).ok().and_then(|ms| ms.parse().ok());
    given.map_or(SILENCE, Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

    #[test]
    fn a_stopped_process_is_told_from_a_slow_one() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        assert!(!is_stopped(child.id()));
        kill_process(pid, Signal::STOP).unwrap();
        waitpid(Some(pid), WaitOptions::UNTRACED).unwrap();
        assert!(is_stopped(child.id()));
        kill_process(pid, Signal::CONT).unwrap();
        waitpid(Some(pid), WaitOptions::CONTINUED).unwrap();
        assert!(!is_stopped(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_stopped(child.id()), "nobody is not stopped");
    }
}
