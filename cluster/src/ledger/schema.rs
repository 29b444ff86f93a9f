//! The ledger's tables. Every one is append-only: rows are numbered without gaps (`seq`) and linked by a hash (`link`,
//! see [`super::chain`]), so that a row that was deleted, doubled or edited is found. SQLite's own tools may read them all.

/// An append-only table.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its columns besides `seq` and `link`, with their types and constraints.
    pub columns: &'static [(&'static str, &'static str)],
    /// Constraints over several columns.
    pub constraint: &'static str,
}

const UNIQUE_INT: &str = "INTEGER NOT NULL UNIQUE";
const INT: &str = "INTEGER NOT NULL";
const TEXT: &str = "TEXT NOT NULL";

/// Facts about the run that never change: id, numerics, hash of the resolved config.
pub const META: Table = Table { name: "meta", columns: &[("key", "TEXT NOT NULL UNIQUE"), ("value", TEXT)], constraint: "" };
/// Starts of the coordinator.
pub const EPOCHS: Table = Table { name: "epochs", columns: &[("epoch", UNIQUE_INT), ("at_ms", INT)], constraint: "" };
/// Every training group ever leased, when it is leased first. `cursor` is its place in the stream of data rows.
pub const GENERATED: Table = Table { name: "generated", columns: &[("grp", UNIQUE_INT), ("cursor", INT)], constraint: "" };
/// Groups that were put in flight.
pub const OPENED: Table = Table { name: "opened", columns: &[("grp", UNIQUE_INT), ("epoch", INT)], constraint: "" };
/// Groups that left flight, and how.
pub const CLOSED: Table = Table { name: "closed", columns: &[("grp", UNIQUE_INT), ("how", TEXT)], constraint: "" };
/// Every lease of a training group.
pub const LEASES: Table = Table {
    name: "leases",
    columns: &[("grp", INT), ("attempt", INT), ("worker", TEXT), ("epoch", INT), ("at_ms", INT)],
    constraint: "UNIQUE(grp, attempt)",
};
/// Accepted trajectory batches: who made them, where they stand, BLAKE3 of their contents. The first accepted wins.
pub const TRAJECTORIES: Table = Table { name: "trajectories", columns: RECORD_COLUMNS, constraint: "" };
/// Accepted scores, likewise.
pub const SCORES: Table = Table { name: "scores", columns: RECORD_COLUMNS, constraint: "" };
const RECORD_COLUMNS: &[(&str, &str)] =
    &[("grp", UNIQUE_INT), ("attempt", INT), ("worker", TEXT), ("segment", INT), ("offset", INT), ("len", INT), ("digest", TEXT)];
/// What each step consumes, before it is taken.
pub const INTENTS: Table = Table {
    name: "intents",
    columns: &[("step", UNIQUE_INT), ("base", INT), ("groups", TEXT), ("digests", TEXT)],
    constraint: "",
};
/// What came of each step.
pub const COMMITS: Table = Table {
    name: "commits",
    columns: &[("step", UNIQUE_INT), ("version", INT), ("weights_sha256", TEXT), ("weights_digest", TEXT), ("metrics", TEXT)],
    constraint: "",
};
/// Groups whose step is committed.
pub const CONSUMED: Table = Table { name: "consumed", columns: &[("grp", UNIQUE_INT), ("step", INT)], constraint: "" };
/// Groups given up, with the reason.
pub const DROPPED: Table =
    Table { name: "dropped", columns: &[("grp", UNIQUE_INT), ("reason", TEXT), ("detail", TEXT)], constraint: "" };
/// Complete checkpoints.
pub const CHECKPOINTS: Table = Table {
    name: "checkpoints",
    columns: &[("version", INT), ("dir", TEXT), ("manifest_sha256", TEXT), ("at_ms", INT)],
    constraint: "",
};
/// Complete evaluation rounds.
pub const EVALUATIONS: Table = Table {
    name: "evaluations",
    columns: &[("step", INT), ("greedy", INT), ("report", TEXT)],
    constraint: "UNIQUE(step, greedy)",
};

/// All of them.
pub const TABLES: &[&Table] = &[
    &META,
    &EPOCHS,
    &GENERATED,
    &OPENED,
    &CLOSED,
    &LEASES,
    &TRAJECTORIES,
    &SCORES,
    &INTENTS,
    &COMMITS,
    &CONSUMED,
    &DROPPED,
    &CHECKPOINTS,
    &EVALUATIONS,
];

/// Version of this layout, SQLite's `user_version`.
pub const LAYOUT: i64 = 2;

impl Table {
    /// Statement that makes it.
    #[must_use]
    pub fn create(&self) -> String {
        let mut sql = format!("CREATE TABLE {} (seq INTEGER PRIMARY KEY", self.name);
        for (name, kind) in self.columns {
            sql.push_str(&format!(", \"{name}\" {kind}"));
        }
        // Not unique: an index over hashes costs more than all else of a row, and `seq` and the chain say the same.
        sql.push_str(", link BLOB NOT NULL");
        if !self.constraint.is_empty() {
            sql.push_str(&format!(", {}", self.constraint));
        }
        sql.push_str(") STRICT");
        sql
    }

    /// Statement that appends a row: `seq`, the columns, `link`.
    #[must_use]
    pub fn insert(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let marks = vec!["?"; self.columns.len() + 2];
        format!("INSERT INTO {} (seq, {}, link) VALUES ({})", self.name, names.join(", "), marks.join(", "))
    }

    /// Query of all rows in order: `seq`, the columns, `link`.
    #[must_use]
    pub fn select(&self) -> String {
        let names: Vec<String> = self.columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        format!("SELECT seq, {}, link FROM {} ORDER BY seq", names.join(", "), self.name)
    }
}
