//! The replicated log on a keeper's disk: an SQLite database of its own, beside the ledger that is made from it.
//!
//! Invariants
//! - **G1** an entry or a vote is on the disk (`synchronous = FULL`) before anybody hears that it is.
//! - **G2** writes happen one after the other; after a failed one openraft stops this keeper.
use super::Types;
use super::wire::{ballot, log_id, place, read, vote, written};
use crate::ledger::error::LedgerError;
use crate::ledger::rows;
use cohort_protocol::codec;
use cohort_protocol::messages::keepers::{Ballot, KeeperStore, LogEntry, LogPlace};
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, Entry, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote};
use rusqlite::{Connection, OptionalExtension, Transaction};
use std::fmt::Debug;
use std::io::Read;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of entries sent to another keeper at once; one that is larger goes alone.
const AT_ONCE: usize = 4 << 20;
/// Version of the layout, SQLite's `user_version`.
const LAYOUT: i64 = 1;
const CREATE: &str = "CREATE TABLE log (idx INTEGER PRIMARY KEY, entry BLOB NOT NULL) STRICT;
                      CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;";

/// The log; clones share it.
#[derive(Debug, Clone)]
pub(super) struct LogStore {
    conn: Arc<Mutex<Connection>>,
    path: PathBuf,
    own: KeeperStore,
}

type Failure = StorageError<u64>;

impl LogStore {
    /// Opens the log of keeper `number`, or begins it. Blocks.
    ///
    /// # Errors
    /// [`LedgerError::Corrupt`] where it is another keeper's.
    pub(super) fn open(path: &Path, number: u64) -> Result<Self, LedgerError> {
        let at = |e| LedgerError::sqlite(path, e);
        let mut conn = rows::connect(path).map_err(at)?;
        let tx = conn.transaction().map_err(at)?;
        let layout: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(at)?;
        if layout == 0 {
            let mut drawn = [0u8; 8];
            let source = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut drawn));
            source.map_err(|e| LedgerError::io("read", Path::new("/dev/urandom"), e))?;
            tx.execute_batch(CREATE).map_err(at)?;
            tx.pragma_update(None, "user_version", LAYOUT).map_err(at)?;
            let own = KeeperStore { keeper: number, store: u64::from_le_bytes(drawn) };
            put(&tx, "own", &own).map_err(at)?;
        } else if layout != LAYOUT {
            let what = format!("its layout is {layout}, this build reads {LAYOUT}");
            return Err(LedgerError::Corrupt { path: path.to_owned(), what });
        }
        let own: Option<KeeperStore> = get(&tx, "own").map_err(at)?;
        tx.commit().map_err(at)?;
        match own {
            Some(own) if own.keeper == number => Ok(Self { conn: Arc::new(Mutex::new(conn)), path: path.to_owned(), own }),
            other => {
                let what = match other {
                    Some(own) => format!("it is the log of keeper {}, not of keeper {number}", own.keeper),
                    None => "it does not say whose log it is".to_owned(),
                };
                Err(LedgerError::Corrupt { path: path.to_owned(), what })
            }
        }
    }

    /// Whose log this is.
    pub(super) fn own(&self) -> KeeperStore {
        self.own
    }

    /// Whether `peer` is who it always was; who comes for the first time is remembered (K5).
    ///
    /// # Errors
    /// [`LedgerError`]: the disk.
    pub(super) async fn knows(&self, peer: KeeperStore) -> Result<bool, LedgerError> {
        let path = self.path.clone();
        let known = self.on(move |tx| {
            let name = format!("peer-{}", peer.keeper);
            let known: Option<KeeperStore> = get(tx, &name)?;
            if known.is_none() {
                put(tx, &name, &peer)?;
            }
            Ok(known.is_none_or(|known| known == peer))
        });
        known.await.map_err(|error| LedgerError::Corrupt { path, what: error.to_string() })
    }

    /// Runs `work` in a transaction on a thread that may wait for the disk.
    async fn on<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, AnyError> {
        let conn = self.conn.clone();
        let done = tokio::task::spawn_blocking(move || {
            let mut conn = conn.lock().unwrap_or_else(PoisonError::into_inner);
            let tx = conn.transaction()?;
            let value = work(&tx)?;
            tx.commit()?;
            Ok::<_, rusqlite::Error>(value)
        });
        done.await.map_err(|e| AnyError::new(&e))?.map_err(|e| AnyError::new(&e).add_context(|| self.path.display().to_string()))
    }
}

fn put<T: codec::Writable>(tx: &Transaction<'_>, name: &str, value: &T) -> rusqlite::Result<()> {
    let sql = "INSERT INTO state (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";
    tx.prepare_cached(sql)?.execute((name, bytes_of(value)?)).map(drop)
}

fn get<T: codec::Readable>(tx: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<T>> {
    let found: Option<Vec<u8>> =
        tx.prepare_cached("SELECT value FROM state WHERE name = ?")?.query_row([name], |row| row.get(0)).optional()?;
    found.map(|bytes| value_of(&bytes)).transpose()
}

/// A value's bytes for a column.
pub(super) fn bytes_of<T: codec::Writable>(value: &T) -> rusqlite::Result<Vec<u8>> {
    codec::encode(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

/// A value from a column.
pub(super) fn value_of<T: codec::Readable>(bytes: &[u8]) -> rusqlite::Result<T> {
    codec::decode(bytes).map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(e)))
}

/// Indices fit SQLite's signed integers: a log has fewer entries than that.
fn index(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn entries(tx: &Transaction<'_>, first: u64, end: u64, at_most: usize) -> rusqlite::Result<Vec<Entry<Types>>> {
    let mut query = tx.prepare_cached("SELECT entry FROM log WHERE idx >= ?1 AND idx < ?2 ORDER BY idx")?;
    let mut rows = query.query((index(first), index(end)))?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let entry: Vec<u8> = row.get(0)?;
        bytes += entry.len();
        if bytes > at_most && !found.is_empty() {
            break;
        }
        found.push(read(value_of::<LogEntry>(&entry)?));
    }
    Ok(found)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, Failure> {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.on(move |tx| entries(tx, first, end, usize::MAX)).await.map_err(|e| StorageIOError::read_logs(e).into())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry<Types>>, Failure> {
        self.on(move |tx| entries(tx, start, end, AT_ONCE)).await.map_err(|e| StorageIOError::read_logs(e).into())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, Failure> {
        let found = self.on(|tx| {
            let purged: Option<LogPlace> = get(tx, "purged")?;
            let sql = "SELECT entry FROM log ORDER BY idx DESC LIMIT 1";
            let last: Option<Vec<u8>> = tx.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?;
            let last = last.map(|bytes| value_of::<LogEntry>(&bytes)).transpose()?;
            Ok((purged, last.map(|entry| entry.place)))
        });
        let (purged, last) = found.await.map_err(StorageIOError::read_logs)?;
        Ok(LogState { last_purged_log_id: purged.map(log_id), last_log_id: last.or(purged).map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, cast: &Vote<u64>) -> Result<(), Failure> {
        let ballot = ballot(*cast);
        self.on(move |tx| put(tx, "vote", &ballot)).await.map_err(|e| StorageIOError::write_vote(e).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failure> {
        let found = self.on(|tx| get::<Ballot>(tx, "vote")).await;
        Ok(found.map_err(StorageIOError::read_vote)?.map(vote))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().map(written).collect();
        let kept = self.on(move |tx| {
            let mut insert = tx.prepare_cached("INSERT INTO log (idx, entry) VALUES (?1, ?2)")?;
            entries.iter().try_for_each(|entry| insert.execute((index(entry.place.index), bytes_of(entry)?)).map(drop))
        });
        kept.await.map_err(StorageIOError::write_logs)?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId<u64>) -> Result<(), Failure> {
        let cut = self.on(move |tx| tx.execute("DELETE FROM log WHERE idx >= ?", [index(from.index)]));
        cut.await.map(drop).map_err(|e| StorageIOError::write_logs(e).into())
    }

    async fn purge(&mut self, upto: LogId<u64>) -> Result<(), Failure> {
        let purged = place(upto);
        let cut = self.on(move |tx| {
            put(tx, "purged", &purged)?;
            tx.execute("DELETE FROM log WHERE idx <= ?", [index(purged.index)])
        });
        cut.await.map(drop).map_err(|e| StorageIOError::write_logs(e).into())
    }
}
