//! The ledger of a run: an SQLite database in WAL mode that indexes the segments and holds every decision.
//!
//! Invariants
//! - **L1** [`Ledger::apply`] returns only when all entries are durable: segments synced first, then one transaction with
//!   `synchronous = FULL`. Before that nothing may be acknowledged or acted upon.
//! - **L2** a batch is applied whole or not at all; after a failure the ledger is as before it.
//! - **L3** trajectories and scores of a group are recorded once; a second one is [`LedgerError::Doubled`].
//! - **L4** "consumed" is written with the commit of its step, never before.
use super::chain::Heads;
use super::entry::{Accepted, Entry};
use super::error::LedgerError;
use super::place::{self, RunPaths};
use super::reader::Reader;
use super::rows::{self, Record, accepted_values, int, parse_worker, text, write_entry};
use super::schema::{self, LAYOUT, TABLES};
use super::segments::{Place, RecordKind, SegmentLog, Unacknowledged, segment_path};
use cohort_protocol::{AttemptId, Epoch, GroupId, Role, RunId, TrajectoryBatch, WorkerId};
use rusqlite::{OptionalExtension, Transaction, TransactionBehavior};
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// Stands for a worker whose name was lost with a crash.
const UNKNOWN: WorkerId = WorkerId { role: Role::Coordinator, index: 0 };

/// What a run is, fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMeta {
    /// Its name.
    pub run: RunId,
    /// Everything that decides bits, one line.
    pub numerics: String,
    /// BLAKE3 of the resolved config, hex.
    pub config_hash: String,
}

/// What a caller writes beside its rows, in one transaction with them.
pub(super) trait Note: FnOnce(&Transaction<'_>) -> rusqlite::Result<()> {}
impl<F: FnOnce(&Transaction<'_>) -> rusqlite::Result<()>> Note for F {}

/// The writing end; one in a run directory.
#[derive(Debug)]
pub struct Ledger {
    reader: Reader,
    segments: SegmentLog,
    heads: Heads,
    /// A transaction was rolled back: what memory knows of the tables' ends must follow it.
    stale: bool,
}

/// Whoever writes it may read it.
impl Deref for Ledger {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        &self.reader
    }
}

impl Ledger {
    /// Makes the ledger of a new run.
    pub fn create(paths: &RunPaths, meta: &RunMeta) -> Result<Self, LedgerError> {
        let path = paths.ledger();
        if path.exists() {
            return Err(LedgerError::Exists { path: paths.root().to_owned() });
        }
        std::fs::create_dir_all(paths.root()).map_err(|e| LedgerError::io("make", paths.root(), e))?;
        place::check_local(paths.root())?;
        // Made under another name and renamed, so that a ledger is there whole or not at all.
        let draft = path.with_extension("draft");
        for leftover in [draft.clone(), draft.with_extension("draft-wal"), draft.with_extension("draft-shm")] {
            if leftover.exists() {
                std::fs::remove_file(&leftover).map_err(|e| LedgerError::io("remove", &leftover, e))?;
            }
        }
        let at = |e| LedgerError::sqlite(&draft, e);
        let mut conn = rows::connect(&draft).map_err(at)?;
        let tx = conn.transaction().map_err(at)?;
        for table in TABLES {
            tx.execute_batch(&table.create()).map_err(at)?;
        }
        tx.execute_batch("CREATE TABLE heads (name TEXT PRIMARY KEY, count INTEGER NOT NULL, link BLOB NOT NULL) STRICT")
            .map_err(at)?;
        tx.pragma_update(None, "user_version", LAYOUT).map_err(at)?;
        let mut heads = Heads::default();
        for (key, value) in
            [("run", meta.run.0.to_string()), ("numerics", meta.numerics.clone()), ("config_hash", meta.config_hash.clone())]
        {
            heads.append(&tx, &schema::META, vec![text(key), text(&value)]).map_err(at)?;
        }
        heads.flush(&tx).map_err(at)?;
        tx.commit().map_err(at)?;
        // What the log holds goes into the file that is renamed; `close` would try and not say that it failed.
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(at)?;
        conn.close().map_err(|(_, e)| at(e))?;
        std::fs::rename(&draft, &path).map_err(|e| LedgerError::io("name", &path, e))?;
        place::sync_dir(paths.root())?;
        Self::open(paths)
    }

    /// Opens the ledger of an existing run: cuts torn tails, takes whole unacknowledged records into the index.
    pub fn open(paths: &RunPaths) -> Result<Self, LedgerError> {
        let (mut ledger, found) = Self::open_with(paths, SegmentLog::open)?;
        ledger.adopt(found)?;
        Ok(ledger)
    }

    /// Opens a ledger that is written from a replicated log: what the index does not know is cut, since the log says it again.
    pub(super) fn open_copy(paths: &RunPaths) -> Result<Self, LedgerError> {
        let cut = |dir: &Path, known| Ok((SegmentLog::open_cut(dir, known)?, ()));
        Ok(Self::open_with(paths, cut)?.0)
    }

    fn open_with<T>(
        paths: &RunPaths,
        open: impl FnOnce(&Path, Option<Place>) -> Result<(SegmentLog, T), LedgerError>,
    ) -> Result<(Self, T), LedgerError> {
        let reader = Reader::over(paths, rows::connect)?;
        place::check_local(paths.root())?;
        let at = |e| LedgerError::sqlite(&reader.path, e);
        let heads = Heads::read(&reader.conn).map_err(at)?;
        let (segments, found) = open(&reader.segment_dir, rows::last_place(&reader.conn).map_err(at)?)?;
        Ok((Self { reader, segments, heads, stale: false }, found))
    }

    /// Begins the next incarnation of the coordinator.
    pub fn begin_epoch(&mut self, at_ms: u64) -> Result<Epoch, LedgerError> {
        self.begin_epoch_noting(at_ms, |_| Ok(()))
    }

    /// As [`Self::begin_epoch`], with a note of the caller's in the same transaction.
    pub(super) fn begin_epoch_noting(&mut self, at_ms: u64, note: impl Note) -> Result<Epoch, LedgerError> {
        let epoch = Epoch(self.epoch()?.0 + 1);
        self.transact(|heads, tx| {
            note(tx)?;
            heads.append(tx, &schema::EPOCHS, vec![int(epoch.0), int(at_ms)])
        })?;
        Ok(epoch)
    }

    /// The newest incarnation of the coordinator; 0 before the first.
    pub(super) fn epoch(&self) -> Result<Epoch, LedgerError> {
        let last = self.conn.query_row("SELECT max(epoch) FROM epochs", [], |row| row.get::<_, Option<i64>>(0));
        Ok(Epoch(last.map_err(|e| LedgerError::sqlite(&self.path, e))?.unwrap_or(0).cast_unsigned()))
    }

    /// Records facts, in order, all or nothing.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<(), LedgerError> {
        self.apply_noting(entries, |_| Ok(()))
    }

    /// Writes a note of the caller's alone.
    pub(super) fn note(&mut self, note: impl Note) -> Result<(), LedgerError> {
        self.transact(|_, tx| note(tx))
    }

    /// As [`Self::apply`], with a note of the caller's in the same transaction.
    pub(super) fn apply_noting(&mut self, entries: &[Entry], note: impl Note) -> Result<(), LedgerError> {
        let (number, end) = self.segments.position();
        let result = self.apply_inner(entries, note);
        if result.is_err() {
            self.segments.rollback(number, end);
        }
        result
    }

    /// What could not grow, where an error of [`Self::apply`] says that there is no room and the same entries may be applied
    /// again once there is.
    #[must_use]
    pub fn lacks_room(&self, error: &LedgerError) -> Option<PathBuf> {
        match error {
            LedgerError::NoSpace { path } if self.segments.is_usable() => Some(path.clone()),
            _ => None,
        }
    }

    /// Lets the database grow by no more than this many pages, as a full disk would.
    #[cfg(test)]
    pub(crate) fn limit_pages(&self, pages: u32) {
        self.conn.pragma_update(None, "max_page_count", pages).unwrap();
    }

    fn apply_inner(&mut self, entries: &[Entry], note: impl Note) -> Result<(), LedgerError> {
        let mut places = Vec::new();
        for entry in entries {
            places.push(match entry {
                Entry::Trajectories(a) => Some(self.segments.append(RecordKind::Trajectories, &a.payload)?),
                Entry::Scores(a) => Some(self.segments.append(RecordKind::Scores, &a.payload)?),
                _ => None,
            });
        }
        if places.iter().any(Option::is_some) {
            self.segments.sync()?;
        }
        self.transact(|heads, tx| {
            note(tx)?;
            entries.iter().zip(&places).try_for_each(|(entry, place)| write_entry(heads, tx, entry, *place))
        })
    }

    fn transact(&mut self, work: impl FnOnce(&mut Heads, &Transaction<'_>) -> rusqlite::Result<()>) -> Result<(), LedgerError> {
        let (heads, stale) = (&mut self.heads, &mut self.stale);
        let result = (|| {
            if *stale {
                *heads = Heads::read(&self.reader.conn)?;
            }
            *stale = true;
            let tx = self.reader.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            work(heads, &tx)?;
            heads.flush(&tx)?;
            tx.commit()?;
            *stale = false;
            Ok(())
        })();
        result.map_err(|error| rows::doubled(&error).unwrap_or_else(|| LedgerError::sqlite(&self.reader.path, error)))
    }

    /// Takes whole batches behind the index into it. They were written before a crash and never acknowledged; the first
    /// of a group wins, as always, and a group that is not in flight is none of ours. Scores are asked for again.
    fn adopt(&mut self, found: Vec<Unacknowledged>) -> Result<(), LedgerError> {
        for record in found.into_iter().filter(|r| r.kind == RecordKind::Trajectories) {
            let path = segment_path(&self.segment_dir, record.place.segment);
            let codec_error = |source| LedgerError::Codec { path: path.clone(), source };
            let batch = TrajectoryBatch::read(&record.payload).map_err(codec_error)?;
            let worker = self.lessee(batch.group, batch.attempt)?;
            let accepted = Accepted::trajectories(batch.into(), worker).map_err(codec_error)?;
            let table = &schema::TRAJECTORIES;
            if self.is_in_flight(accepted.group)? && self.place_of(table, accepted.group)?.is_none() {
                let values = accepted_values(&accepted, record.place);
                self.transact(|heads, tx| heads.append(tx, table, values))?;
            }
        }
        Ok(())
    }

    fn lessee(&self, group: GroupId, attempt: AttemptId) -> Result<WorkerId, LedgerError> {
        let sql = "SELECT worker FROM leases WHERE grp = ? AND attempt = ?";
        let found = self.conn.query_row(sql, (group.0 as i64, attempt.0), |row| row.get::<_, String>(0)).optional();
        let name = found.map_err(|e| LedgerError::sqlite(&self.path, e))?;
        Ok(name.and_then(|n| parse_worker(&n)).unwrap_or(UNKNOWN))
    }

    fn is_in_flight(&self, group: GroupId) -> Result<bool, LedgerError> {
        let sql = "SELECT 1 FROM opened WHERE grp = ?1 AND NOT EXISTS (SELECT 1 FROM closed WHERE closed.grp = ?1)";
        let found = self.conn.query_row(sql, [group.0 as i64], |_| Ok(())).optional();
        Ok(found.map_err(|e| LedgerError::sqlite(&self.path, e))?.is_some())
    }
}
