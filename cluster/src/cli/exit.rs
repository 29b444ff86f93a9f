//! How the program ends: exit codes and the errors that lead to them (documented in `docs/cli.md`).
use crate::agent::AgentError;
use crate::config::ConfigError;
use crate::coordinator::CoordinatorError;
use crate::ledger::LedgerError;
use crate::run::RunError;
use crate::run::wiring::WiringError;
use cohort_engine::EngineError;
use cohort_model::ModelError;
use cohort_protocol::messages::learner::Fault;
use cohort_reward_workers::RewardError;
use cohort_rollout::RolloutError;
use std::fmt::Display;
use std::io;
use std::path::Path;

/// How the program ends. Codes stay within 1 to 99; 128 and above would read as death by signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// The report is complete and its answer is no: accounts that do not balance, a check that failed.
    Negative = 1,
    /// Bad command line or configuration.
    Usage = 2,
    /// The model is missing, damaged or of an unknown kind.
    Model = 3,
    /// A data set, a prompt or an input file is bad.
    Data = 4,
    /// The run directory is missing, in use, damaged or on a file system that cannot hold a ledger.
    RunDirectory = 5,
    /// A resume or a worker would compute something else than the run: other numerics or settings, another build.
    Numerics = 6,
    /// A worker or grader failed more often than it may be restarted, or no host brought the workers that the run waited for.
    WorkerGaveUp = 7,
    /// The operating system refused: no space, no permission, a port in use.
    Io = 8,
    /// The engine failed: a value that is not finite, no memory, a device.
    Compute = 9,
    /// SIGINT or SIGTERM: drained, checkpointed, ready to be resumed.
    Drained = 20,
    /// A mistake in the program itself.
    Internal = 70,
}

impl Exit {
    /// Every one.
    const ALL: [Self; 12] = [
        Self::Success,
        Self::Negative,
        Self::Usage,
        Self::Model,
        Self::Data,
        Self::RunDirectory,
        Self::Numerics,
        Self::WorkerGaveUp,
        Self::Io,
        Self::Compute,
        Self::Drained,
        Self::Internal,
    ];

    /// The one with that code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| *exit as u8 == code)
    }
}

/// An error with the code it ends in.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// How the program ends.
    pub exit: Exit,
    /// Place, value and remedy.
    pub message: String,
}

impl CliError {
    /// From a message.
    pub fn new(exit: Exit, message: impl Display) -> Self {
        Self { exit, message: message.to_string() }
    }

    /// The operating system refused to `action` a file.
    pub fn io(action: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(Exit::Io, format!("cannot {action} {}: {error}", path.display()))
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        Self::new(Exit::Model, error)
    }
}

impl From<RewardError> for CliError {
    fn from(error: RewardError) -> Self {
        let exit = match &error {
            RewardError::Config { .. } => Exit::Usage,
            RewardError::Request { .. } => Exit::Data,
            RewardError::File { .. } => Exit::Io,
            _ => Exit::WorkerGaveUp,
        };
        Self::new(exit, error)
    }
}

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        let exit = match &error {
            EngineError::Input(_) => Exit::Data,
            _ => Exit::Compute,
        };
        Self::new(exit, error)
    }
}

impl From<LedgerError> for CliError {
    fn from(error: LedgerError) -> Self {
        let exit = match &error {
            LedgerError::NoSpace { .. } | LedgerError::Io { .. } => Exit::Io,
            LedgerError::Doubled { .. } => Exit::Internal,
            LedgerError::NotKept { .. } | LedgerError::Overtaken { .. } => Exit::WorkerGaveUp,
            _ => Exit::RunDirectory,
        };
        Self::new(exit, error)
    }
}

/// What is written to stdout. A reader that went away (`| head`) ends the program quietly.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Success, ""),
            _ => Self::new(Exit::Io, format!("cannot write the output: {error}")),
        }
    }
}

impl From<serde_json::Error> for CliError {
    fn from(error: serde_json::Error) -> Self {
        match error.io_error_kind() {
            Some(kind) => io::Error::from(kind).into(),
            None => Self::new(Exit::Internal, format!("a report cannot be written as JSON: {error}")),
        }
    }
}

impl From<RolloutError> for CliError {
    fn from(error: RolloutError) -> Self {
        let exit = match &error {
            RolloutError::Config { .. } => Exit::Usage,
            RolloutError::Data { .. } | RolloutError::Item { .. } => Exit::Data,
            RolloutError::Model(_) => Exit::Model,
            RolloutError::Engine(EngineError::Input(_)) => Exit::Data,
            RolloutError::Engine(_) => Exit::Compute,
            _ => Exit::WorkerGaveUp,
        };
        Self::new(exit, error)
    }
}

impl From<WiringError> for CliError {
    fn from(error: WiringError) -> Self {
        match error {
            WiringError::Model(error) => error.into(),
            WiringError::Engine(error) => error.into(),
            WiringError::Rollout(error) => error.into(),
            WiringError::Reward(error) => error.into(),
            WiringError::Training(error) => Self::new(Exit::Usage, error),
            WiringError::Parent(error) => Self::new(Exit::Internal, error),
        }
    }
}

impl From<RunError> for CliError {
    fn from(error: RunError) -> Self {
        let exit = match error {
            RunError::Wiring(error) => return error.into(),
            RunError::Config(error) => return error.into(),
            RunError::Ledger(error) | RunError::Coordinator(CoordinatorError::Ledger(error)) => return error.into(),
            RunError::Devices(_) | RunError::NotByKeeper => Exit::Usage,
            RunError::Exists { .. } | RunError::NotARun { .. } => Exit::RunDirectory,
            RunError::Changed { .. }
            | RunError::Edited { .. }
            | RunError::Numerics { .. }
            | RunError::Coordinator(CoordinatorError::Numerics { .. }) => Exit::Numerics,
            RunError::Coordinator(CoordinatorError::RunFailed { fault, .. }) => match fault {
                Fault::Worker => Exit::WorkerGaveUp,
                Fault::Compute => Exit::Compute,
                Fault::System => Exit::Io,
            },
            RunError::Coordinator(CoordinatorError::Internal(_)) => Exit::Internal,
            RunError::GaveUp { exit, .. } | RunError::Agent(AgentError::GaveUp { exit, .. }) => exit,
            RunError::Agent(
                AgentError::System { .. } | AgentError::RunDirectory(_) | AgentError::Ring(_) | AgentError::Listen(_),
            ) => Exit::Io,
            RunError::Agent(AgentError::Stopped { .. }) => Exit::Drained,
            RunError::Agent(_) | RunError::Hung { .. } => Exit::WorkerGaveUp,
            RunError::System { .. } | RunError::NoRoom { .. } => Exit::Io,
        };
        Self::new(exit, error)
    }
}
