//! The reading end that a coordinator needs, beside whoever writes the ledger: what the run is, its past, deliveries byte for byte.
use super::entry::Accepted;
use super::error::LedgerError;
use super::place::RunPaths;
use super::recover::{Past, read_past};
use super::rows::{self, Record, parse_worker};
use super::schema::{self, Table};
use super::segments::{Place, RecordKind, read_record, segment_path};
use super::store::RunMeta;
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{AttemptId, GroupId, TrajectoryBatch};
use rusqlite::{Connection, OptionalExtension};
use std::path::{Path, PathBuf};

/// A ledger, open to be read.
#[derive(Debug)]
pub struct Reader {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    pub(super) segment_dir: PathBuf,
}

impl Reader {
    /// Opens the ledger of a run; nothing in it is changed.
    ///
    /// # Errors
    /// [`LedgerError::Missing`], [`LedgerError::Corrupt`] where it is of another layout.
    pub fn open(paths: &RunPaths) -> Result<Self, LedgerError> {
        Self::over(paths, rows::connect_to_read)
    }

    /// Over a connection that `connect` makes.
    pub(super) fn over(paths: &RunPaths, connect: fn(&Path) -> rusqlite::Result<Connection>) -> Result<Self, LedgerError> {
        let path = paths.ledger();
        if !path.exists() {
            return Err(LedgerError::Missing { path: paths.root().to_owned() });
        }
        let conn = connect(&path).map_err(|e| LedgerError::sqlite(&path, e))?;
        rows::check_layout(&conn, &path)?;
        Ok(Self { conn, path, segment_dir: paths.segments() })
    }

    /// What the run is.
    pub fn meta(&self) -> Result<RunMeta, LedgerError> {
        rows::read_meta(&self.conn, &self.path)
    }

    /// Reads everything back that a new incarnation of the coordinator needs to know.
    pub fn past(&self) -> Result<Past, LedgerError> {
        let mut past = read_past(&self.conn, &self.path)?;
        for (id, group) in past.open_groups.iter_mut().filter(|(_, group)| group.trajectories.is_some()) {
            group.versions = self.trajectories(*id)?.and_then(|accepted| accepted.value.versions());
        }
        Ok(past)
    }

    /// Reads a group's accepted trajectories back.
    pub fn trajectories(&self, group: GroupId) -> Result<Option<Accepted<TrajectoryBatch>>, LedgerError> {
        self.accepted(&schema::TRAJECTORIES, RecordKind::Trajectories, group)
    }

    /// Reads a group's accepted scores back.
    pub fn scores(&self, group: GroupId) -> Result<Option<Accepted<ScoreReply>>, LedgerError> {
        self.accepted(&schema::SCORES, RecordKind::Scores, group)
    }

    pub(super) fn place_of(&self, table: &Table, group: GroupId) -> Result<Option<Place>, LedgerError> {
        let sql = format!("SELECT segment, offset, len FROM {} WHERE grp = ?", table.name);
        let found = self.conn.query_row(&sql, [group.0 as i64], |row| {
            Ok(Place { segment: row.get(0)?, offset: row.get::<_, i64>(1)? as u64, len: row.get(2)? })
        });
        found.optional().map_err(|e| LedgerError::sqlite(&self.path, e))
    }

    fn accepted<T: Record>(&self, table: &Table, kind: RecordKind, group: GroupId) -> Result<Option<Accepted<T>>, LedgerError> {
        let Some(place) = self.place_of(table, group)? else { return Ok(None) };
        let sql = format!("SELECT attempt, worker, digest FROM {} WHERE grp = ?", table.name);
        let (attempt, worker, digest): (u32, String, String) = self
            .conn
            .query_row(&sql, [group.0 as i64], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .map_err(|e| LedgerError::sqlite(&self.path, e))?;
        let payload = read_record(&self.segment_dir, place, kind)?;
        let path = segment_path(&self.segment_dir, place.segment);
        let value = T::read(&payload).map_err(|source| LedgerError::Codec { path: path.clone(), source })?;
        let worker = parse_worker(&worker).ok_or(LedgerError::Corrupt { path, what: format!("worker {worker:?}") })?;
        let attempt = AttemptId(attempt);
        Ok(Some(Accepted { group, attempt, worker, payload: payload.into(), digest, value: value.into() }))
    }
}
