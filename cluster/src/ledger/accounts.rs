//! What a coordinator needs of a ledger, wherever it is written: on this host alone ([`Ledger`]), or by keepers on several
//! ([`super::replica::KeptLedger`]).
use super::entry::Entry;
use super::error::LedgerError;
use super::reader::Reader;
use super::store::Ledger;
use cohort_protocol::Epoch;
use std::path::PathBuf;

/// A ledger that is written and read.
pub trait Accounts: Send {
    /// Its reading end. Sees what was applied.
    fn reader(&self) -> &Reader;

    /// Begins the next incarnation of the coordinator.
    ///
    /// # Errors
    /// [`LedgerError`].
    fn begin_epoch(&mut self, at_ms: u64) -> Result<Epoch, LedgerError>;

    /// Records facts, in order, all or nothing; they are durable when it returns.
    ///
    /// # Errors
    /// [`LedgerError`].
    fn apply(&mut self, entries: &[Entry]) -> Result<(), LedgerError>;

    /// What could not grow, where an error of [`Accounts::apply`] says that there is no room and the same entries may be applied
    /// again once there is.
    fn lacks_room(&self, error: &LedgerError) -> Option<PathBuf>;
}

impl Accounts for Ledger {
    fn reader(&self) -> &Reader {
        self
    }

    fn begin_epoch(&mut self, at_ms: u64) -> Result<Epoch, LedgerError> {
        Self::begin_epoch(self, at_ms)
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        Self::apply(self, entries)
    }

    fn lacks_room(&self, error: &LedgerError) -> Option<PathBuf> {
        Self::lacks_room(self, error)
    }
}
