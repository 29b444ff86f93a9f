//! Why the ledger refused, grouped by what the caller does: make room, choose another place, or stop.
use cohort_protocol::Epoch;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Every one leaves what was acknowledged before it intact.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// No room: nothing acknowledged was lost.
    #[error("no space left for {path}: free some, then go on with `cluster launch --resume`; nothing acknowledged is lost")]
    NoSpace {
        /// What could not grow.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// SQLite refused.
    #[error("ledger {path}: {source}")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: rusqlite::Error,
    },
    /// What was acknowledged can no longer be read as it was written.
    #[error("{path} is damaged: {what}; restore it from a copy, or start a new run")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where and how.
        what: String,
    },
    /// A file system without reliable locks.
    #[error("{path} is on {kind}, whose locks SQLite cannot rely on: choose a local directory with --run-dir")]
    RemoteFileSystem {
        /// The directory.
        path: PathBuf,
        /// Kind of file system.
        kind: &'static str,
    },
    /// Already has a ledger.
    #[error("{path} already holds a run: continue it with --resume {path}, or replace it with --clean")]
    Exists {
        /// The run directory.
        path: PathBuf,
    },
    /// Has none.
    #[error("{path} holds no run: no ledger.sqlite in it")]
    Missing {
        /// The run directory.
        path: PathBuf,
    },
    /// Another process is using it.
    #[error("{path} is in use by process {holder}: wait for it, or stop it with `kill -TERM {holder}`")]
    InUse {
        /// The run directory.
        path: PathBuf,
        /// Who holds the lock.
        holder: String,
    },
    /// A write failed before, so that the state on disk is unknown; only a restart may go on.
    #[error("{path}: an earlier write failed ({why}); the ledger takes no more until it is opened again")]
    Poisoned {
        /// The file.
        path: PathBuf,
        /// The first failure.
        why: String,
    },
    /// A record cannot be encoded or decoded.
    #[error("record in {path}: {source}")]
    Codec {
        /// The segment.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: cohort_protocol::CodecError,
    },
    /// Another coordinator writes this ledger now; nothing of this one's was written.
    #[error("epoch {epoch} is over: a coordinator of epoch {now} has begun on another host")]
    Overtaken {
        /// This coordinator's.
        epoch: Epoch,
        /// The newest.
        now: Epoch,
    },
    /// The keeper of this host did not take a command; whether it is written is not known.
    #[error("the keeper of this host does not take it: {why}")]
    NotKept {
        /// Its reason.
        why: String,
    },
    /// The same key twice: a programming error, caught before it can count anything twice.
    #[error("{table}: {key} is recorded already")]
    Doubled {
        /// Table.
        table: &'static str,
        /// Key.
        key: String,
    },
}

impl LedgerError {
    /// From an I/O error; "no space" and "quota" become [`LedgerError::NoSpace`].
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpace { path: path.to_owned() }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// From an SQLite error; "full" becomes [`LedgerError::NoSpace`], damage [`LedgerError::Corrupt`].
    pub(crate) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        // On a full disk the shared index of the log cannot grow, which SQLite reports in a way of its own.
        let extended = source.sqlite_error().map(|e| e.extended_code);
        if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) {
            return Self::NoSpace { path: path.to_owned() };
        }
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::NoSpace { path: path.to_owned() },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt { path: path.to_owned(), what: source.to_string() }
            }
            _ => Self::Sqlite { path: path.to_owned(), source },
        }
    }
}
