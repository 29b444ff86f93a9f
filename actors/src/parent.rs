//! A child's half of "no orphans": it leaves when the node agent that started it is gone.
//!
//! Two ways, each enough: the agent holds the other end of the child's stdin, which reads EOF when the agent dies in
//! whatever manner; and on Linux the kernel sends SIGKILL, which also reaches a child that is stopped or stuck.
use crate::shutdown::Shutdown;
use crate::supervision::process::exit;
use std::io::{self, Read};
use std::os::unix::process::parent_id;
use std::time::Duration;
use thiserror::Error;
use tracing::warn;

/// Set by the agent: its process id.
pub const ENV_PARENT: &str = "COHORT_PARENT_PID";
/// Set by the agent: how many times this place was started before.
pub const ENV_INCARNATION: &str = "COHORT_INCARNATION";

/// Time to leave in good order after the agent's death, well below the 5 s in which everything must be gone.
const GRACE: Duration = Duration::from_secs(3);

/// The process could not tie its life to its parent's.
#[derive(Debug, Error)]
pub enum ParentError {
    /// The parent died before this call.
    #[error("the node agent (process {expected}) is gone, the parent is process {parent}")]
    Gone {
        /// Who started it.
        expected: u32,
        /// Whose child it is now.
        parent: u32,
    },
    /// The environment is not the agent's.
    #[error("{name}={value:?} is not a number; it is set by the node agent only")]
    Environment {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// The system refused.
    #[error("cannot watch the node agent: {0}")]
    System(#[from] io::Error),
}

/// Ties this process's life to the agent's. When the agent is gone, `shutdown` is triggered and the process exits with
/// [`exit::ORPHANED`] 3 s later at the latest. Returns `false`, and does nothing, where no agent started this process.
/// Takes over stdin. Call it once, early.
pub fn exit_with_parent(shutdown: &Shutdown) -> Result<bool, ParentError> {
    let Some(expected) = number(ENV_PARENT)? else { return Ok(false) };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).map_err(io::Error::from)?;
    // After the signal is set: a parent that died before is noticed here, one that dies later by the kernel.
    let parent = parent_id();
    if parent != expected {
        return Err(ParentError::Gone { expected, parent });
    }
    let shutdown = shutdown.clone();
    std::thread::Builder::new().name("parent-watch".to_owned()).spawn(move || {
        let mut nothing = [0; 64];
        // The agent writes nothing; interrupted reads are retried, any other end of the pipe is the agent's.
        while match io::stdin().lock().read(&mut nothing) {
            Ok(read) => read > 0,
            Err(error) => error.kind() == io::ErrorKind::Interrupted,
        } {}
        warn!(target: "cohort::supervision", agent = expected, "agent_gone");
        shutdown.trigger("the node agent is gone");
        std::thread::sleep(GRACE);
        std::process::exit(i32::from(exit::ORPHANED));
    })?;
    Ok(true)
}

/// Which start of its place this process is, from 0; 0 where no agent started it.
pub fn incarnation() -> Result<u32, ParentError> {
    Ok(number(ENV_INCARNATION)?.unwrap_or(0))
}

fn number(name: &'static str) -> Result<Option<u32>, ParentError> {
    match std::env::var(name) {
        Ok(value) => value.parse().map(Some).map_err(|_| ParentError::Environment { name, value }),
        Err(_) => Ok(None),
    }
}
