//! What a new incarnation of the coordinator needs to know, read back from the ledger.
use super::error::LedgerError;
use super::rows::parse_worker;
use crate::progress::EvaluationReport;
use cohort_protocol::{AttemptId, GroupId, PolicyVersion, StepCommit, StepId, StepIntent, WorkerId};
use rusqlite::{Connection, Row};
use std::collections::BTreeMap;
use std::path::Path;

/// The past of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Past {
    /// Intents by step.
    pub intents: BTreeMap<StepId, StepIntent>,
    /// Commits by step.
    pub commits: BTreeMap<StepId, StepCommit>,
    /// Complete checkpoints, oldest first.
    pub checkpoints: Vec<PastCheckpoint>,
    /// Groups in flight.
    pub open_groups: BTreeMap<GroupId, PastGroup>,
    /// First group number never used.
    pub next_group: u64,
    /// First place in the stream of data rows never used.
    pub next_cursor: u64,
    /// Complete evaluation rounds.
    pub evaluations: Vec<EvaluationReport>,
    /// Groups given up, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastCheckpoint {
    /// Version it holds.
    pub version: PolicyVersion,
    /// Directory, relative to the run directory.
    pub dir: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
}

/// A group in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastGroup {
    /// Place in the stream of data rows.
    pub cursor: u64,
    /// Highest attempt ever leased.
    pub attempt: AttemptId,
    /// Digest of its accepted trajectories, and who made them.
    pub trajectories: Option<(String, WorkerId)>,
    /// Oldest and newest policy version of their tokens; `None` where nothing was sampled.
    pub versions: Option<(PolicyVersion, PolicyVersion)>,
    /// Digest of its accepted scores, and who gave them.
    pub scores: Option<(String, WorkerId)>,
}

impl Past {
    /// The last committed step; 0 before the first.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.commits.last_key_value().map_or(0, |(step, _)| step.0)
    }
}

pub(super) fn read_past(conn: &Connection, path: &Path) -> Result<Past, LedgerError> {
    let mut past = Past::default();
    let at = |e| LedgerError::sqlite(path, e);
    for (step, base, groups, digests) in rows(conn, "SELECT step, base, groups, digests FROM intents", |r| {
        Ok((unsigned(r, 0)?, unsigned(r, 1)?, r.get::<_, String>(2)?, r.get::<_, String>(3)?))
    })
    .map_err(at)?
    {
        let groups: Vec<u64> = parse(path, "intents.groups", &groups)?;
        let intent = StepIntent {
            step: StepId(step),
            base: PolicyVersion(base),
            groups: groups.into_iter().map(GroupId).collect(),
            digests: parse(path, "intents.digests", &digests)?,
        };
        past.intents.insert(intent.step, intent);
    }
    past.commits = read_commits(conn, path)?;
    past.checkpoints = rows(conn, "SELECT version, dir, manifest_sha256 FROM checkpoints ORDER BY seq", |r| {
        Ok(PastCheckpoint { version: PolicyVersion(unsigned(r, 0)?), dir: r.get(1)?, manifest_sha256: r.get(2)? })
    })
    .map_err(at)?;
    past.evaluations = rows(conn, "SELECT report FROM evaluations ORDER BY seq", |r| r.get::<_, String>(0))
        .map_err(at)?
        .iter()
        .map(|report| parse(path, "evaluations.report", report))
        .collect::<Result<_, _>>()?;
    past.open_groups = read_open_groups(conn).map_err(at)?;
    let by_reason = |r: &Row<'_>| Ok((r.get(0)?, unsigned(r, 1)?));
    past.dropped =
        rows(conn, "SELECT reason, count(*) FROM dropped GROUP BY reason", by_reason).map_err(at)?.into_iter().collect();
    let (group, cursor) = conn
        .query_row("SELECT coalesce(max(grp) + 1, 0), coalesce(max(cursor) + 1, 0) FROM generated", [], |r| {
            Ok((unsigned(r, 0)?, unsigned(r, 1)?))
        })
        .map_err(at)?;
    (past.next_group, past.next_cursor) = (group, cursor);
    Ok(past)
}

/// All commits by step.
pub(super) fn read_commits(conn: &Connection, path: &Path) -> Result<BTreeMap<StepId, StepCommit>, LedgerError> {
    let sql = "SELECT step, version, weights_sha256, weights_digest, metrics FROM commits";
    let found = rows(conn, sql, |r| {
        Ok((unsigned(r, 0)?, unsigned(r, 1)?, r.get::<_, String>(2)?, r.get::<_, String>(3)?, r.get::<_, String>(4)?))
    })
    .map_err(|e| LedgerError::sqlite(path, e))?;
    let mut commits = BTreeMap::new();
    for (step, version, weights_sha256, digest, metrics) in found {
        let weights_digest = u64::from_str_radix(&digest, 16).map_err(|e| LedgerError::Corrupt {
            path: path.to_owned(),
            what: format!("commits.weights_digest {digest:?}: {e}"),
        })?;
        let metrics: serde_json::Map<String, serde_json::Value> = parse(path, "commits.metrics", &metrics)?;
        // JSON has no NaN: a metric that was not finite was written as null.
        let metrics = metrics.into_iter().map(|(name, value)| (name, value.as_f64().unwrap_or(f64::NAN))).collect();
        let commit = StepCommit { step: StepId(step), version: PolicyVersion(version), weights_sha256, weights_digest, metrics };
        commits.insert(commit.step, commit);
    }
    Ok(commits)
}

fn read_open_groups(conn: &Connection) -> rusqlite::Result<BTreeMap<GroupId, PastGroup>> {
    let sql = "SELECT g.grp, g.cursor, coalesce((SELECT max(attempt) FROM leases l WHERE l.grp = g.grp), 0),
                      t.digest, t.worker, s.digest, s.worker
               FROM generated g
               LEFT JOIN trajectories t ON t.grp = g.grp
               LEFT JOIN scores s ON s.grp = g.grp
               WHERE NOT EXISTS (SELECT 1 FROM closed c WHERE c.grp = g.grp)
               ORDER BY g.grp";
    let found = rows(conn, sql, |r| {
        let record = |digest: usize| -> rusqlite::Result<Option<(String, WorkerId)>> {
            let (digest, worker): (Option<String>, Option<String>) = (r.get(digest)?, r.get(digest + 1)?);
            Ok(digest.zip(worker.as_deref().and_then(parse_worker)))
        };
        let (trajectories, scores) = (record(3)?, record(5)?);
        let group = PastGroup { cursor: unsigned(r, 1)?, attempt: AttemptId(r.get(2)?), trajectories, versions: None, scores };
        Ok((GroupId(unsigned(r, 0)?), group))
    })?;
    Ok(found.into_iter().collect())
}

fn rows<T>(conn: &Connection, sql: &str, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<Vec<T>> {
    conn.prepare(sql)?.query_map([], read)?.collect()
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|value| value as u64)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, column: &str, value: &str) -> Result<T, LedgerError> {
    serde_json::from_str(value)
        .map_err(|e| LedgerError::Corrupt { path: path.to_owned(), what: format!("{column} {value:.80}: {e}") })
}
