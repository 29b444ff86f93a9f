//! `process`: the user's own program grades, as a supervised child of the reward worker. Protocol: `docs/plugins.md`.
//!
//! Invariants
//! - **X1** the child is spawned by one thread that lives as long as it does, so that the kernel's parent-death signal
//!   means the worker's death; the child leads its own process group and the whole group is killed with it.
//! - **X2** every exchange has a deadline; a child that misses it, dies, or writes anything but the answer is killed and
//!   started anew for the next try.
//! - **X3** more than `max_restarts` restarts within `restart_window_s` end the plug-in for good, naming the first cause.
//! - **X4** the child is confined ([`cohort_actors::confine`]) unless the config says otherwise, and does not start where that
//!   cannot be had; its keeper leads the process group, and leaves nothing of it behind.
//!
//! | failure | action | what is lost |
//! |---|---|---|
//! | hangs past `timeout_s` | killed, restarted, tried again | the time |
//! | dies, writes nonsense | restarted, tried again | the time |
//! | uses more than its limits | killed as a whole, restarted, tried again | the time |
//! | wrong count, bad entry, exception | the sample or group fails; no retry, no restart | nothing |
//! | too many restarts | the plug-in ends; its groups fail with the first cause | the run stops |
mod child;
mod confined;
pub mod frame;
pub mod hello;
mod output;
mod supervisor;

use crate::exchange;
use crate::guard::{Failure, Guard, GuardOptions};
use crate::reward::{Reward, ScoreInput, failed};
use async_trait::async_trait;
use cohort_actors::backoff::BackoffPolicy;
use cohort_actors::confine::Confiner;
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
const MARGIN: Duration = Duration::from_secs(20);

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
    /// Environment variables for it, beside PATH and the like. Default: none.
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
    /// Cap of the address space of each of its processes in MiB (RLIMIT_AS, Linux), and of the resident memory of all together
    /// where it is confined; 0 is none. Default 4096.
    #[serde(default = "four_gib")]
    pub memory_mib: u64,
    /// Whether it runs confined by Landlock, seccomp and limits, which the keys from `network` to `scratch_mib` are about.
    /// Default true. With false it may do whatever the worker may.
    #[serde(default = "yes")]
    pub confine: bool,
    /// Whether it may use the internet: TCP and UDP. Default false.
    #[serde(default)]
    pub network: bool,
    /// Files and folders that it reads beside the system's libraries, its interpreter and `working_dir`; relative to the
    /// config file. Default: none.
    #[serde(default)]
    pub read: Vec<PathBuf>,
    /// Files and folders that it reads and writes beside its own temporary folder, which is `TMPDIR` and `HOME`; relative to
    /// the config file. Default: none.
    #[serde(default)]
    pub write: Vec<PathBuf>,
    /// The worker's environment variables that it gets beside PATH, locale and Python's. Default: none.
    #[serde(default)]
    pub pass_env: Vec<String>,
    /// Processes and threads at once, at most. Default 256.
    #[serde(default = "many")]
    pub processes: u32,
    /// MiB in its temporary folder, and in any one file it writes, at most. Default 256.
    #[serde(default = "many_mib")]
    pub scratch_mib: u64,
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
fn yes() -> bool {
    true
}
fn many() -> u32 {
    256
}
fn many_mib() -> u64 {
    256
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
            confine: true,
            network: false,
            read: Vec::new(),
            write: Vec::new(),
            pass_env: Vec::new(),
            processes: many(),
            scratch_mib: many_mib(),
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
    limits: confined::Limits,
}

impl ProcessReward {
    /// Checks the keys and starts the supervising thread. The child is confined by `confiner`.
    pub fn new(name: &str, config: ProcessConfig, confiner: &Confiner) -> Result<Self, String> {
        let spec = child::Spec::new(name, &config, confiner)?;
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
        let limits = confined::Limits::of(&config);
        Ok(Self { name: name.to_owned(), guard, turn: Mutex::new(()), supervisor, limits })
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
        for outcome in &mut outcomes {
            if let ScoreOutcome::Failed { error, .. } = outcome {
                self.limits.explain(error);
            }
        }
        outcomes
    }

    fn longest(&self) -> Duration {
        self.guard.longest()
    }

    fn breakers(&self) -> Vec<(String, String)> {
        vec![(self.name.clone(), self.guard.state())]
    }
}
