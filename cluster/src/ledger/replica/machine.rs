//! What applies the log: the ledger of this keeper.
use super::command::entries;
use super::log::{bytes_of, value_of};
use super::wire::{Members, log_id, members, place, sets};
use super::{Command, Types};
use crate::ledger::error::LedgerError;
use crate::ledger::place::RunPaths;
use crate::ledger::store::Ledger;
use cohort_protocol::keeping::{LedgerAnswer, LedgerCommand};
use cohort_protocol::messages::keepers::LogPlace;
use cohort_protocol::{Epoch, codec};
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{
    AnyError, Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, SnapshotMeta, StorageError, StorageIOError,
    StoredMembership,
};
use rusqlite::{OptionalExtension, Transaction};
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

type Failure = StorageError<u64>;
type Stored = StoredMembership<u64, openraft::EmptyNode>;

/// How far the log is applied, in the ledger's own database.
const CREATE: &str = "CREATE TABLE IF NOT EXISTS replica (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT";
const NO_SNAPSHOTS: &str = "the log is kept whole: there are no snapshots, and none is ever needed";

/// This keeper's ledger; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Machine(Arc<Mutex<Applied>>);

#[derive(Debug)]
struct Applied {
    ledger: Ledger,
    last: Option<LogId<u64>>,
    members: Stored,
    closed: watch::Sender<Option<Closing>>,
    stopped: bool,
}

/// How a run ended for a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// Raft's term of the keeper that led.
    pub term: u64,
    /// The exit code of the launch.
    pub code: u8,
    /// Why.
    pub reason: String,
}

impl Machine {
    /// Opens the ledger as far as it is applied; the receiver hears how the run ends for this launch. Blocks.
    pub(super) fn open(paths: &RunPaths) -> Result<(Self, watch::Receiver<Option<Closing>>), LedgerError> {
        let mut ledger = Ledger::open_copy(paths)?;
        ledger.note(|tx| tx.execute_batch(CREATE))?;
        let mut marks = (None, None);
        ledger.note(|tx| {
            marks = (get::<LogPlace>(tx, "applied")?, get::<Seated>(tx, "keepers")?);
            Ok(())
        })?;
        let (last, seated) = marks;
        let members = seated.map_or_else(Stored::default, |(at, sets)| Stored::new(at.map(log_id), members(sets)));
        let (closed, told) = watch::channel(None);
        let applied = Applied { ledger, last: last.map(log_id), members, closed, stopped: false };
        Ok((Self(Arc::new(Mutex::new(applied))), told))
    }

    /// The newest epoch that this keeper knows of.
    pub(super) fn epoch(&self) -> Result<Epoch, LedgerError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ledger.epoch()
    }

    /// Nothing is written from now on.
    pub(super) fn stop(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stopped = true;
    }
}

/// A set of keepers and the place of its entry.
type Seated = (Option<LogPlace>, Vec<Vec<u64>>);

impl Applied {
    fn apply(&mut self, entry: Entry<Types>) -> Result<LedgerAnswer, LedgerError> {
        if self.stopped {
            return Err(LedgerError::NotKept { why: "it was stopped".to_owned() });
        }
        let at = place(entry.log_id);
        let answer = match entry.payload {
            EntryPayload::Blank => self.ledger.note(|tx| put(tx, "applied", &at)).map(|()| LedgerAnswer::Nothing),
            EntryPayload::Membership(members) => self.seat(entry.log_id, members),
            EntryPayload::Normal(Command(bytes)) => match codec::decode(&bytes) {
                Ok(command) => self.obey(command, at),
                Err(error) => self.pass_over(at, LedgerAnswer::Unreadable(error.to_string())),
            },
        }?;
        self.last = Some(entry.log_id);
        Ok(answer)
    }

    fn seat(&mut self, at: LogId<u64>, members: Members) -> Result<LedgerAnswer, LedgerError> {
        let seated: Seated = (Some(place(at)), sets(&members));
        self.ledger.note(|tx| {
            put(tx, "keepers", &seated)?;
            put(tx, "applied", &place(at))
        })?;
        self.members = Stored::new(Some(at), members);
        Ok(LedgerAnswer::Nothing)
    }

    fn obey(&mut self, command: LedgerCommand, at: LogPlace) -> Result<LedgerAnswer, LedgerError> {
        let now = self.ledger.epoch()?;
        match command {
            LedgerCommand::Open { at_ms } => {
                let epoch = self.ledger.begin_epoch_noting(at_ms, |tx| put(tx, "applied", &at))?;
                self.closed.send_replace(None);
                Ok(LedgerAnswer::Opened(epoch))
            }
            // K2.
            LedgerCommand::Record { epoch, .. } | LedgerCommand::Close { epoch, .. } if epoch != now => {
                self.pass_over(at, LedgerAnswer::Overtaken { now })
            }
            LedgerCommand::Record { facts, .. } => match entries(facts) {
                Ok(entries) => match self.ledger.apply_noting(&entries, |tx| put(tx, "applied", &at)) {
                    Ok(()) => Ok(LedgerAnswer::Recorded),
                    Err(LedgerError::Doubled { table, key }) => {
                        self.pass_over(at, LedgerAnswer::Doubled { table: table.into(), key })
                    }
                    Err(error) => Err(error),
                },
                Err(error) => self.pass_over(at, LedgerAnswer::Unreadable(error.to_string())),
            },
            LedgerCommand::Close { code, reason, .. } => {
                self.ledger.note(|tx| put(tx, "applied", &at))?;
                self.closed.send_replace(Some(Closing { term: at.leadership.term, code, reason }));
                Ok(LedgerAnswer::Closed)
            }
        }
    }

    /// Nothing of the entry is written but that it was seen: every keeper comes to the same answer.
    fn pass_over(&mut self, at: LogPlace, answer: LedgerAnswer) -> Result<LedgerAnswer, LedgerError> {
        self.ledger.note(|tx| put(tx, "applied", &at)).map(|()| answer)
    }
}

fn put<T: codec::Writable>(tx: &Transaction<'_>, name: &str, value: &T) -> rusqlite::Result<()> {
    let sql = "INSERT INTO replica (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";
    tx.prepare_cached(sql)?.execute((name, bytes_of(value)?)).map(drop)
}

fn get<T: codec::Readable>(tx: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<T>> {
    let sql = "SELECT value FROM replica WHERE name = ?";
    let found: Option<Vec<u8>> = tx.prepare_cached(sql)?.query_row([name], |row| row.get(0)).optional()?;
    found.map(|bytes| value_of(&bytes)).transpose()
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = NoSnapshots;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, Stored), Failure> {
        let applied = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((applied.last, applied.members.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<LedgerAnswer>, Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (applied, entries) = (self.0.clone(), entries.into_iter().collect::<Vec<_>>());
        let done = tokio::task::spawn_blocking(move || {
            let mut applied = applied.lock().unwrap_or_else(PoisonError::into_inner);
            let mut one = |entry: Entry<Types>| {
                let at = entry.log_id;
                applied.apply(entry).map_err(|error| (at, error))
            };
            entries.into_iter().map(&mut one).collect::<Result<Vec<_>, _>>()
        });
        match done.await.map_err(|error| StorageIOError::write_state_machine(&error))? {
            Ok(answers) => Ok(answers),
            Err((at, error)) => {
                tracing::error!(target: "cohort::keeper", %error, index = at.index, "entry_not_applied");
                Err(StorageIOError::apply(at, &error).into())
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshots {
        NoSnapshots
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Failure> {
        Err(refused())
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta<u64, openraft::EmptyNode>,
        _snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Failure> {
        Err(refused())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, Failure> {
        Ok(None)
    }
}

/// K5.
pub(super) struct NoSnapshots;

impl RaftSnapshotBuilder<Types> for NoSnapshots {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, Failure> {
        Err(refused())
    }
}

fn refused() -> Failure {
    StorageIOError::write_snapshot(None, AnyError::error(NO_SNAPSHOTS)).into()
}
