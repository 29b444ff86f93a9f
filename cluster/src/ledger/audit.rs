//! The proof that no group was lost or counted twice, from records that do not lean on each other.
//!
//! `generated`, `consumed`, `dropped` and the difference of `opened` and `closed` are tables of their own, each written
//! where its fact happens; the audit compares them as sets, checks every table's chain and every segment record.
use super::chain::verify;
use super::error::LedgerError;
use super::place::RunPaths;
use super::rows::{check_layout, connect_to_read};
use super::schema::TABLES;
use super::segments::{Place, RecordKind, read_record};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What `audit RUN --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditReport {
    /// What is counted: always `group`.
    pub unit: String,
    /// Groups ever leased for training.
    pub generated: u64,
    /// Groups whose step is committed.
    pub consumed: u64,
    /// Groups given up, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Groups leased and neither consumed nor dropped.
    pub in_flight: u64,
    /// `generated = consumed + dropped + in_flight`, and no finding.
    pub balanced: bool,
    /// Everything that does not hold.
    pub findings: Vec<String>,
}

/// Audits a run; it may be running. Reads only.
pub fn audit(paths: &RunPaths) -> Result<AuditReport, LedgerError> {
    let path = paths.ledger();
    if !path.exists() {
        return Err(LedgerError::Missing { path: paths.root().to_owned() });
    }
    let at = |e| LedgerError::sqlite(&path, e);
    let mut conn = connect_to_read(&path).map_err(at)?;
    check_layout(&conn, &path)?;
    // One read transaction: one state of a ledger that may be growing.
    let tx = conn.transaction().map_err(at)?;
    let mut findings = Vec::new();
    for table in TABLES {
        if let Err(broken) = verify(&tx, table).map_err(at)? {
            findings.push(format!("table {}: {}", broken.table, broken.what));
        }
    }
    let tables = Tables::read(&tx).map_err(at)?;
    tables.compare(&mut findings);
    check_records(paths, &tx, &mut findings).map_err(at)?;
    let in_flight = tables.opened.len() as u64 - tables.opened.intersection(&tables.closed).count() as u64;
    let dropped_total: u64 = tables.dropped_by_reason.values().sum();
    let (generated, consumed) = (tables.generated.len() as u64, tables.consumed.len() as u64);
    if generated != consumed + dropped_total + in_flight {
        findings.push(format!("{generated} generated, {consumed} consumed + {dropped_total} dropped + {in_flight} in flight"));
    }
    Ok(AuditReport {
        unit: "group".into(),
        generated,
        consumed,
        dropped: tables.dropped_by_reason,
        in_flight,
        balanced: findings.is_empty(),
        findings,
    })
}

#[derive(Debug)]
struct Tables {
    generated: BTreeSet<u64>,
    opened: BTreeSet<u64>,
    closed: BTreeSet<u64>,
    leased: BTreeSet<u64>,
    consumed: BTreeSet<u64>,
    dropped: BTreeSet<u64>,
    recorded: BTreeSet<u64>,
    scored: BTreeSet<u64>,
    committed: BTreeSet<u64>,
    dropped_by_reason: BTreeMap<String, u64>,
    doubled: Vec<String>,
}

impl Tables {
    fn read(conn: &Connection) -> rusqlite::Result<Self> {
        let mut doubled = Vec::new();
        let mut set = |table: &str, unique: bool| -> rusqlite::Result<BTreeSet<u64>> {
            let mut groups = BTreeSet::new();
            let mut query = conn.prepare(&format!("SELECT grp FROM {table}"))?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let group = row.get::<_, i64>(0)? as u64;
                if !groups.insert(group) && unique {
                    doubled.push(format!("table {table}: group {group} is there twice"));
                }
            }
            Ok(groups)
        };
        let (generated, opened, closed) = (set("generated", true)?, set("opened", true)?, set("closed", true)?);
        let (leased, consumed, dropped) = (set("leases", false)?, set("consumed", true)?, set("dropped", true)?);
        let (recorded, scored) = (set("trajectories", true)?, set("scores", true)?);
        let mut dropped_by_reason = BTreeMap::new();
        let mut query = conn.prepare("SELECT reason, count(*) FROM dropped GROUP BY reason")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            dropped_by_reason.insert(row.get(0)?, row.get::<_, i64>(1)? as u64);
        }
        let mut committed = BTreeSet::new();
        let mut query = conn.prepare("SELECT i.groups FROM commits c JOIN intents i ON i.step = c.step")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let groups: Vec<u64> = serde_json::from_str(&row.get::<_, String>(0)?).unwrap_or_default();
            for group in groups {
                if !committed.insert(group) {
                    doubled.push(format!("two committed steps consume group {group}"));
                }
            }
        }
        Ok(Self { generated, opened, closed, leased, consumed, dropped, recorded, scored, committed, dropped_by_reason, doubled })
    }

    fn compare(&self, findings: &mut Vec<String>) {
        findings.extend(self.doubled.iter().cloned());
        let finished: BTreeSet<u64> = self.consumed.union(&self.dropped).copied().collect();
        let mut same = |what: &str, left: &BTreeSet<u64>, right: &BTreeSet<u64>| {
            let odd: Vec<u64> = left.symmetric_difference(right).copied().collect();
            if !odd.is_empty() {
                findings.push(format!("{what}: differ in {} groups ({:?} ..)", odd.len(), &odd[..odd.len().min(5)]));
            }
        };
        same("generated and opened", &self.generated, &self.opened);
        same("closed and consumed or dropped", &self.closed, &finished);
        same("consumed and the groups of committed steps", &self.consumed, &self.committed);
        let mut within = |what: &str, left: &BTreeSet<u64>, right: &BTreeSet<u64>| {
            let odd: Vec<u64> = left.difference(right).copied().collect();
            if !odd.is_empty() {
                findings.push(format!("{what}: {} groups ({:?} ..)", odd.len(), &odd[..odd.len().min(5)]));
            }
        };
        within("leased and never generated", &self.leased, &self.generated);
        within("recorded and never leased", &self.recorded, &self.leased);
        within("scored and not recorded", &self.scored, &self.recorded);
        within("consumed and not scored", &self.consumed, &self.scored);
        let both: Vec<u64> = self.consumed.intersection(&self.dropped).copied().collect();
        if !both.is_empty() {
            findings.push(format!("consumed and dropped: groups {both:?}"));
        }
    }
}

/// Reads every indexed record of the segments and checks its bytes.
fn check_records(paths: &RunPaths, conn: &Connection, findings: &mut Vec<String>) -> rusqlite::Result<()> {
    for (table, kind) in [("trajectories", RecordKind::Trajectories), ("scores", RecordKind::Scores)] {
        let mut query = conn.prepare(&format!("SELECT segment, offset, len, grp FROM {table} ORDER BY seq"))?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let place = Place { segment: row.get(0)?, offset: row.get::<_, i64>(1)? as u64, len: row.get(2)? };
            if let Err(error) = read_record(&paths.segments(), place, kind) {
                findings.push(format!("{table} of group {}: {error}", row.get::<_, i64>(3)?));
            }
        }
    }
    Ok(())
}
