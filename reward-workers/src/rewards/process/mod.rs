//! `process`: the user's own program grades, as a supervised child of the reward worker. Protocol: `docs/plugins.md`.
//!
//! Invariants
//! - **X1** the child is spawned by one thread that lives as long as it does, so that the kernel's parent-death signal
//!   means the worker's death; the child leads its own process group and the whole group is killed with it.
//! - **X2** every exchange has a deadline; a child that misses it, dies, or writes anything but the answer is killed and
//!   started anew for the next try.
//! - **X3** more than `max_restarts` restarts within `restart_window_s` end the plug-in for good, naming the first cause.
//!
//! | failure | action | what is lost |
//! |---|---|---|
//! | hangs past `timeout_s` | killed, restarted, tried again | the time |
//! | dies, writes nonsense | restarted, tried again | the time |
//! | wrong count, bad entry, exception | the sample or group fails; no retry, no restart | nothing |
//! | too many restarts | the plug-in ends; its groups fail with the first cause | the run stops |
mod child;
pub mod frame;
pub mod hello;
mod output;
mod supervisor;

use crate::exchange;
use crate::guard::{Failure, Guard, GuardOptions};
use crate::reward::{Reward, ScoreInput, failed};
use async_trait::async_trait;
use cohort_actors::backoff::BackoffPolicy;
use cohort_actors::supervision::SupervisionPolicy;
use cohort_protocol::ScoreOutcome;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use supervisor::Supervisor;
use tokio::sync::Mutex;

/// What killing a child and collecting its last lines may take.
const MARGIN: Duration = Duration::from_secs(5);

/// Keys of `type = "process"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessConfig {
    /// Program and arguments. A program without a slash is looked up in PATH; other relative paths are those of the config
    /// file's folder, in which the program runs.
    pub command: Vec<String>,
    /// Folder in which the program runs, relative to the config file. Default: the config file's folder.
    #[serde(default)]
    pub working_dir: Option<PathBuf>,
    /// Environment variables beside the worker's own. Default: none.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A table handed to the program; checked against the schema it declares. Default: empty.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// Seconds for grading one group; then the program is killed. Default 30.
    #[serde(default = "thirty")]
    pub timeout_s: f64,
    /// Seconds from start to its hello. Default 30.
    #[serde(default = "thirty")]
    pub start_timeout_s: f64,
    /// Tries for one group, each in a fresh process where the last one failed. Default 2.
    #[serde(default = "two")]
    pub attempts: u32,
    /// Cap of its address space in MiB (RLIMIT_AS, Linux); 0 is none. Default 4096.
    #[serde(default = "four_gib")]
    pub memory_mib: u64,
    /// Restarts within `restart_window_s` before the plug-in ends for good. Default 20.
    #[serde(default = "twenty")]
    pub max_restarts: u32,
    /// Seconds of the window that `max_restarts` counts in. Default 60.
    #[serde(default = "sixty")]
    pub restart_window_s: f64,
}

fn two() -> u32 {
    2
}
fn twenty() -> u32 {
    20
}
fn thirty() -> f64 {
    30.0
}
fn sixty() -> f64 {
    60.0
}
fn four_gib() -> u64 {
    4096
}

impl ProcessConfig {
    /// A command with the default limits.
    #[must_use]
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            working_dir: None,
            env: BTreeMap::new(),
            options: Map::new(),
            timeout_s: thirty(),
            start_timeout_s: thirty(),
            attempts: two(),
            memory_mib: four_gib(),
            max_restarts: twenty(),
            restart_window_s: sixty(),
        }
    }
}

/// The reward. Its child starts with the first group and grades one group at a time; further callers wait in order.
pub struct ProcessReward {
    name: String,
    guard: Guard,
    turn: Mutex<()>,
    supervisor: Supervisor,
    memory_mib: u64,
}

impl ProcessReward {
    /// Checks the keys and starts the supervising thread.
    pub fn new(name: &str, config: ProcessConfig) -> Result<Self, String> {
        let spec = child::Spec::new(name, &config)?;
        let policy = SupervisionPolicy {
            max_restarts: config.max_restarts,
            window: crate::guard::seconds("restart_window_s", config.restart_window_s)?,
            ..SupervisionPolicy::default()
        };
        let whole = spec.start_timeout.saturating_add(spec.timeout);
        let guard = Guard::new(
            name,
            GuardOptions {
                attempts: config.attempts,
                // The child's own deadlines end a call; this one is for the thread around it.
                deadline: whole.saturating_add(policy.backoff.max).saturating_add(MARGIN),
                slow_after: whole,
                patience: whole,
                backoff: BackoffPolicy { max: Duration::ZERO, ..policy.backoff },
            },
        )?;
        let supervisor = Supervisor::start(spec, policy)?;
        Ok(Self { name: name.to_owned(), guard, turn: Mutex::new(()), supervisor, memory_mib: config.memory_mib })
    }

    /// Adds the remedy to an exception that the memory cap raised.
    fn explain(&self, outcome: &mut ScoreOutcome) {
        if let ScoreOutcome::Failed { error, .. } = outcome
            && error.contains("MemoryError")
            && self.memory_mib > 0
        {
            error.push_str(&format!("; its memory cap is memory_mib = {}", self.memory_mib));
        }
    }
}

#[async_trait]
impl Reward for ProcessReward {
    fn name(&self) -> &str {
        &self.name
    }

    async fn score(&self, input: &ScoreInput) -> Vec<ScoreOutcome> {
        let (question, count) = (exchange::question(input), input.samples.len());
        let turn = self.turn.lock().await;
        let answered = self.guard.call(|| self.supervisor.ask(question.clone())).await;
        drop(turn);
        let graded = answered.and_then(|answer| exchange::outcomes(&self.name, &answer, count).map_err(Failure::Fatal));
        let mut outcomes = match graded {
            Ok(outcomes) => outcomes,
            Err(failure) => vec![failed(&self.name, failure.why(), failure.retryable()); count],
        };
        outcomes.iter_mut().for_each(|outcome| self.explain(outcome));
        outcomes
    }

    fn longest(&self) -> Duration {
        self.guard.longest()
    }

    fn breakers(&self) -> Vec<(String, String)> {
        vec![(self.name.clone(), self.guard.state())]
    }
}
