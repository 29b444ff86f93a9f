//! The reading end of a ledger, beside a coordinator or without one: what was decided, and what it was decided upon.
use super::chain::verify;
use super::error::LedgerError;
use super::place::RunPaths;
use super::recover::{Past, read_past};
use super::rows::{Record, check_layout, connect_to_read, read_meta};
use super::schema::{COMMITS, INTENTS};
use super::segments::{Place, RecordKind, read_record, segment_path};
use super::store::RunMeta;
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{GroupId, TrajectoryBatch};
use rusqlite::{Connection, OptionalExtension};

/// A run's ledger, open to be read.
#[derive(Debug)]
pub struct History {
    conn: Connection,
    paths: RunPaths,
}

/// What a step consumed of a group, as delivered.
pub type Delivered = (TrajectoryBatch, ScoreReply);

impl History {
    /// Opens the ledger of a run; nothing in it is changed.
    pub fn open(paths: RunPaths) -> Result<Self, LedgerError> {
        let path = paths.ledger();
        if !path.is_file() {
            return Err(LedgerError::Missing { path: paths.root().to_owned() });
        }
        let conn = connect_to_read(&path).map_err(|e| LedgerError::sqlite(&path, e))?;
        check_layout(&conn, &path)?;
        Ok(Self { conn, paths })
    }

    /// What the run is.
    pub fn meta(&self) -> Result<RunMeta, LedgerError> {
        read_meta(&self.conn, &self.paths.ledger())
    }

    /// Intents, commits and checkpoints, once their rows are known to be those that were written.
    pub fn past(&self) -> Result<Past, LedgerError> {
        let path = self.paths.ledger();
        for table in [&INTENTS, &COMMITS] {
            if let Err(broken) = verify(&self.conn, table).map_err(|e| LedgerError::sqlite(&path, e))? {
                return Err(LedgerError::Corrupt { path, what: format!("table {}: {}", broken.table, broken.what) });
            }
        }
        read_past(&self.conn, &path)
    }

    /// What of a group's deliveries is no longer there; `None` where both can be read.
    pub fn missing(&self, group: GroupId) -> Result<Option<String>, LedgerError> {
        for table in ["trajectories", "scores"] {
            let Some(place) = self.place(table, group)? else {
                return Ok(Some(format!("the ledger has no {table} of group {group}")));
            };
            let path = segment_path(&self.paths.segments(), place.segment);
            if !path.is_file() {
                return Ok(Some(format!("{} with the {table} of group {group} is gone", path.display())));
            }
        }
        Ok(None)
    }

    /// What was delivered of a group, every byte checked.
    pub fn group(&self, group: GroupId) -> Result<Delivered, LedgerError> {
        let batch = self.record("trajectories", RecordKind::Trajectories, group)?;
        Ok((batch, self.record("scores", RecordKind::Scores, group)?))
    }

    fn record<T: Record>(&self, table: &'static str, kind: RecordKind, group: GroupId) -> Result<T, LedgerError> {
        let Some(place) = self.place(table, group)? else {
            let what = format!("it has no {table} of group {group}");
            return Err(LedgerError::Corrupt { path: self.paths.ledger(), what });
        };
        let payload = read_record(&self.paths.segments(), place, kind)?;
        let path = segment_path(&self.paths.segments(), place.segment);
        T::read(&payload).map_err(|source| LedgerError::Codec { path, source })
    }

    fn place(&self, table: &str, group: GroupId) -> Result<Option<Place>, LedgerError> {
        let sql = format!("SELECT segment, offset, len FROM {table} WHERE grp = ?");
        let found = self.conn.query_row(&sql, [group.0.cast_signed()], |row| {
            Ok(Place { segment: row.get(0)?, offset: row.get::<_, i64>(1)?.cast_unsigned(), len: row.get(2)? })
        });
        found.optional().map_err(|e| LedgerError::sqlite(&self.paths.ledger(), e))
    }
}
