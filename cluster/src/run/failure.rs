//! How one worker's life ended badly: whether another start may help, and the exit code of a run that ends with it. Both
//! kinds of run, in-process and processes, judge by this.
use super::wiring::WiringError;
use crate::cli::{CliError, Exit};
use cohort_actors::LinkError;
use cohort_learner::LearnerError;
use cohort_reward_workers::RewardError;
use cohort_rollout::RolloutError;
use std::fmt::Display;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How the launch ends where this is the cause.
    pub exit: Exit,
    /// Another start would fail the same way.
    pub lasting: bool,
    /// Place, value and remedy.
    pub message: String,
}

impl Failure {
    /// It would come again.
    pub(crate) fn lasting(exit: Exit, error: impl Display) -> Self {
        Self { exit, lasting: true, message: error.to_string() }
    }

    /// It may go better the next time.
    pub(crate) fn passing(error: impl Display) -> Self {
        Self { exit: Exit::WorkerGaveUp, lasting: false, message: error.to_string() }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        match error {
            // Another run, build, numerics or configuration: the coordinator will say the same again.
            LinkError::Refused { .. } => Self::lasting(Exit::Numerics, error),
            _ => Self::passing(error),
        }
    }
}

impl From<WiringError> for Failure {
    fn from(error: WiringError) -> Self {
        let CliError { exit, message } = error.into();
        Self { exit, lasting: true, message }
    }
}

impl From<RolloutError> for Failure {
    fn from(error: RolloutError) -> Self {
        match error {
            RolloutError::Link(error) => error.into(),
            RolloutError::Config { .. } | RolloutError::Data { .. } => {
                let CliError { exit, message } = error.into();
                Self { exit, lasting: true, message }
            }
            _ => Self::passing(error),
        }
    }
}

impl From<RewardError> for Failure {
    fn from(error: RewardError) -> Self {
        match error {
            RewardError::Link(error) => error.into(),
            RewardError::Config { .. } => Self::lasting(Exit::Usage, error),
            _ => Self::passing(error),
        }
    }
}

impl From<LearnerError> for Failure {
    fn from(error: LearnerError) -> Self {
        match error {
            LearnerError::Link(error) => error.into(),
            LearnerError::Config(_) | LearnerError::NoReference => Self::lasting(Exit::Usage, error),
            _ => Self::passing(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_final_and_a_loss_is_not() {
        let refused = LinkError::Refused { peer: "coordinator".into(), reason: "it has other numerics".into() };
        let failure = Failure::from(RolloutError::from(refused));
        assert!(failure.lasting && failure.exit == Exit::Numerics && failure.message.contains("other numerics"), "{failure:?}");
        let lost = LinkError::Shutdown { reason: "x".into() };
        assert!(!Failure::from(LearnerError::from(lost)).lasting);
    }
}
