//! Entries as rows, and rows as values. The only file besides `recover` and `audit` that writes SQL.
use super::chain::Heads;
use super::entry::{Accepted, Entry};
use super::error::LedgerError;
use super::schema::{self, LAYOUT};
use super::segments::Place;
use super::store::RunMeta;
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{CodecError, Role, RunId, TrajectoryBatch, WorkerId, codec};
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction};
use std::path::Path;
use std::time::Duration;

/// What a segment's record may hold.
pub(super) trait Record: Sized {
    /// From its payload.
    fn read(payload: &[u8]) -> Result<Self, CodecError>;
}

impl Record for TrajectoryBatch {
    fn read(payload: &[u8]) -> Result<Self, CodecError> {
        codec::decode(payload)
    }
}

impl Record for ScoreReply {
    fn read(payload: &[u8]) -> Result<Self, CodecError> {
        codec::decode(payload)
    }
}

/// A connection that waits for durable storage at every commit.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    // One for each table and a few more; and a log of 16 MiB before it is worked into the database.
    conn.set_prepared_statement_cache_capacity(64);
    conn.pragma_update(None, "wal_autocheckpoint", 4096)?;
    Ok(conn)
}

/// A connection that changes nothing, beside a writer or without one.
pub(super) fn connect_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

/// Refuses databases of another layout.
pub(super) fn check_layout(conn: &Connection, path: &Path) -> Result<(), LedgerError> {
    let found: i64 = conn.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(|e| LedgerError::sqlite(path, e))?;
    if found == LAYOUT {
        return Ok(());
    }
    let what = format!("its layout is {found}, this build reads {LAYOUT}");
    Err(LedgerError::Corrupt { path: path.to_owned(), what })
}

/// What the run is.
pub(super) fn read_meta(conn: &Connection, path: &Path) -> Result<RunMeta, LedgerError> {
    let value = |key: &str| -> Result<String, LedgerError> {
        let found = conn.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get(0)).optional();
        found
            .map_err(|e| LedgerError::sqlite(path, e))?
            .ok_or_else(|| LedgerError::Corrupt { path: path.to_owned(), what: format!("meta has no {key:?}") })
    };
    let run = value("run")?;
    let run = run.parse().map_err(|_| LedgerError::Corrupt { path: path.to_owned(), what: format!("run id {run:?}") })?;
    Ok(RunMeta { run: RunId(run), numerics: value("numerics")?, config_hash: value("config_hash")? })
}

/// The last record that the index knows.
pub(super) fn last_place(conn: &Connection) -> rusqlite::Result<Option<Place>> {
    let sql = "SELECT segment, offset, len FROM (SELECT segment, offset, len FROM trajectories UNION ALL SELECT segment, offset, len FROM scores)
               ORDER BY segment DESC, offset DESC LIMIT 1";
    conn.query_row(sql, [], |row| Ok(Place { segment: row.get(0)?, offset: row.get::<_, i64>(1)? as u64, len: row.get(2)? }))
        .optional()
}

/// Writes an entry's rows.
pub(super) fn write_entry(heads: &mut Heads, tx: &Transaction<'_>, entry: &Entry, place: Option<Place>) -> rusqlite::Result<()> {
    let place = place.unwrap_or(Place { segment: 0, offset: 0, len: 0 });
    match entry {
        Entry::Opened { group, cursor, epoch } => {
            heads.append(tx, &schema::GENERATED, vec![int(group.0), int(*cursor)])?;
            heads.append(tx, &schema::OPENED, vec![int(group.0), int(epoch.0)])
        }
        Entry::Leased { group, attempt, worker, epoch, at_ms } => {
            let row = vec![int(group.0), int(attempt.0.into()), text(&worker.to_string()), int(epoch.0), int(*at_ms)];
            heads.append(tx, &schema::LEASES, row)
        }
        Entry::Trajectories(a) => heads.append(tx, &schema::TRAJECTORIES, accepted_values(a, place)),
        Entry::Scores(a) => heads.append(tx, &schema::SCORES, accepted_values(a, place)),
        Entry::Intent(intent) => {
            let groups: Vec<u64> = intent.groups.iter().map(|g| g.0).collect();
            let row = vec![int(intent.step.0), int(intent.base.0), json(&groups), json(&intent.digests)];
            heads.append(tx, &schema::INTENTS, row)
        }
        Entry::Commit(commit) => {
            let metrics: serde_json::Map<String, serde_json::Value> =
                commit.metrics.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
            let digest = format!("{:016x}", commit.weights_digest);
            let row =
                vec![int(commit.step.0), int(commit.version.0), text(&commit.weights_sha256), text(&digest), json(&metrics)];
            heads.append(tx, &schema::COMMITS, row)?;
            for group in groups_of(tx, commit.step.0)? {
                heads.append(tx, &schema::CONSUMED, vec![int(group), int(commit.step.0)])?;
                heads.append(tx, &schema::CLOSED, vec![int(group), text("consumed")])?;
            }
            Ok(())
        }
        Entry::Dropped { group, reason, detail } => {
            heads.append(tx, &schema::DROPPED, vec![int(group.0), text(reason), text(detail)])?;
            heads.append(tx, &schema::CLOSED, vec![int(group.0), text("dropped")])
        }
        Entry::Checkpoint { version, dir, manifest_sha256, at_ms } => {
            heads.append(tx, &schema::CHECKPOINTS, vec![int(version.0), text(dir), text(manifest_sha256), int(*at_ms)])
        }
        Entry::Evaluation(report) => {
            let row = vec![int(report.step), int(report.greedy.into()), json(report)];
            heads.append(tx, &schema::EVALUATIONS, row)
        }
    }
}

fn groups_of(tx: &Transaction<'_>, step: u64) -> rusqlite::Result<Vec<u64>> {
    let groups: String = tx.query_row("SELECT groups FROM intents WHERE step = ?", [step as i64], |row| row.get(0))?;
    serde_json::from_str(&groups)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

/// Columns of an accepted delivery.
pub(super) fn accepted_values<T>(a: &Accepted<T>, place: Place) -> Vec<Value> {
    vec![
        int(a.group.0),
        int(a.attempt.0.into()),
        text(&a.worker.to_string()),
        int(place.segment.into()),
        int(place.offset),
        int(place.len.into()),
        text(&a.digest),
    ]
}

/// An unsigned number as SQLite keeps it; ids and counters stay far below 2^63.
pub(super) fn int(value: u64) -> Value {
    Value::Integer(value as i64)
}

/// A text.
pub(super) fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn json<T: serde::Serialize>(value: &T) -> Value {
    // Maps with string keys, numbers and strings: serialisation cannot fail.
    Value::Text(serde_json::to_string(value).unwrap_or_default())
}

/// `rollout-3`.
pub(super) fn parse_worker(name: &str) -> Option<WorkerId> {
    let (role, index) = name.split_once('-')?;
    let role = [Role::Coordinator, Role::Rollout, Role::Reward, Role::Learner].into_iter().find(|r| r.to_string() == role)?;
    Some(WorkerId { role, index: index.parse().ok()? })
}

/// Whether an error says that a unique key was there already.
pub(super) fn doubled(error: &rusqlite::Error) -> Option<LedgerError> {
    let rusqlite::Error::SqliteFailure(cause, Some(message)) = error else { return None };
    if cause.code != ErrorCode::ConstraintViolation {
        return None;
    }
    let column = message.rsplit(": ").next().unwrap_or(message);
    let table = schema::TABLES.iter().find(|t| column.starts_with(t.name)).map_or("ledger", |t| t.name);
    Some(LedgerError::Doubled { table, key: column.to_owned() })
}
