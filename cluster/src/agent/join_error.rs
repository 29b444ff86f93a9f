//! Why a host left early or never joined, with the remedy.
use crate::cli::Exit;
use crate::devices::DeviceError;
use crate::ledger::LedgerError;
use cohort_actors::certs::CertError;
use cohort_actors::transport::EndpointError;
use cohort_actors::{Escalation, LinkError};
use cohort_engine::RingError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a host left early or never joined.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The directory knows no run, and there is no token.
    #[error("{} has joined no run yet: get a token by `cluster token RUN` on the head node and name it by --token-file", dir.display())]
    NoToken {
        /// The host's directory.
        dir: PathBuf,
    },
    /// The token file.
    #[error("the token: {0}")]
    Token(String),
    /// The directory belongs to another run.
    #[error("{} has joined run {joined:016x}, the token is of run {token:016x}; name another directory by --dir", dir.display())]
    OtherRun {
        /// The host's directory.
        dir: PathBuf,
        /// The run there.
        joined: u64,
        /// The run of the token.
        token: u64,
    },
    /// The head node.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Certificates.
    #[error(transparent)]
    Certificates(#[from] CertError),
    /// A port.
    #[error(transparent)]
    Listen(#[from] EndpointError),
    /// The weight ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The run's configuration is none that this build reads.
    #[error("the run's configuration: {0}; use one build for all hosts of a run")]
    Config(String),
    /// This host's devices.
    #[error(transparent)]
    Devices(#[from] DeviceError),
    /// The directory is in use.
    #[error(transparent)]
    Directory(#[from] LedgerError),
    /// A worker failed too often, or cannot run here.
    #[error("this host gives up: {escalation}")]
    GaveUp {
        /// Who, and the first cause.
        escalation: Escalation,
        /// How the command ends, as the child said.
        exit: Exit,
    },
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

pub(super) fn system(what: &'static str) -> impl Fn(std::io::Error) -> JoinError {
    move |source| JoinError::System { what, source }
}
