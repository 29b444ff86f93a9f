//! Rows that only grow: each carries a hash over the row before it and its own values, and `heads` the last of each table.
//!
//! Invariants
//! - **H1** `link[n] = BLAKE3(link[n - 1] | table | seq | values)`, each value with its type and length in front.
//! - **H2** `heads` holds count and last link of every table, written in the same transaction as the row.
//!
//! So a deleted row leaves a gap or a head without its row, a doubled one a second `seq` or a link that does not follow,
//! an edited one a link that does not hold. (Whoever rewrites everything behind it as well is not detected: this guards
//! against faults, not against the owner of the disk.)
use super::schema::{TABLES, Table};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row, Transaction, params_from_iter};
use std::collections::{BTreeSet, HashMap};

type Link = [u8; 32];

/// Where every table ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heads {
    ends: HashMap<&'static str, (i64, Link)>,
    touched: BTreeSet<&'static str>,
    /// Statements that append, written once.
    inserts: HashMap<&'static str, String>,
}

/// What is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Table.
    pub table: &'static str,
    /// Row and rule.
    pub what: String,
}

impl Heads {
    /// As the database says; tables without rows start at 0.
    pub fn read(conn: &Connection) -> rusqlite::Result<Self> {
        let mut ends = HashMap::new();
        for table in TABLES {
            let mut query = conn.prepare_cached("SELECT count, link FROM heads WHERE name = ?")?;
            let mut rows = query.query([table.name])?;
            if let Some(row) = rows.next()? {
                ends.insert(table.name, (row.get(0)?, row.get(1)?));
            }
        }
        Ok(Self { ends, ..Self::default() })
    }

    /// Appends a row within a transaction that ends with [`Heads::flush`]. The heads in memory are ahead of the database
    /// until it is committed: on a rollback read them again.
    pub fn append(&mut self, tx: &Transaction<'_>, table: &'static Table, values: Vec<Value>) -> rusqlite::Result<()> {
        let (count, last) = self.ends.get(table.name).copied().unwrap_or((0, [0; 32]));
        let seq = count + 1;
        let link = link(&last, table, seq, values.iter().map(ValueRef::from));
        let row = std::iter::once(Value::Integer(seq)).chain(values).chain(std::iter::once(Value::Blob(link.to_vec())));
        let insert = self.inserts.entry(table.name).or_insert_with(|| table.insert());
        tx.prepare_cached(insert)?.execute(params_from_iter(row))?;
        self.ends.insert(table.name, (seq, link));
        self.touched.insert(table.name);
        Ok(())
    }

    /// Writes the new ends of the tables that grew.
    pub fn flush(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let sql = "INSERT INTO heads (name, count, link) VALUES (?1, ?2, ?3)
                   ON CONFLICT (name) DO UPDATE SET count = ?2, link = ?3";
        for name in std::mem::take(&mut self.touched) {
            if let Some((count, link)) = self.ends.get(name) {
                tx.prepare_cached(sql)?.execute((name, count, link))?;
            }
        }
        Ok(())
    }
}

/// Checks every row of a table against its link and head.
pub fn verify(conn: &Connection, table: &'static Table) -> rusqlite::Result<Result<(), Broken>> {
    let broken = |what: String| Ok(Err(Broken { table: table.name, what }));
    let head = Heads::read(conn)?.ends.get(table.name).copied();
    let mut query = match conn.prepare(&table.select()) {
        Ok(query) => query,
        Err(e) => return broken(format!("cannot be read: {e}")),
    };
    let mut rows = query.query([])?;
    let (mut seq, mut last) = (0i64, [0; 32]);
    while let Some(row) = rows.next()? {
        seq += 1;
        let found: i64 = row.get(0)?;
        if found != seq {
            return broken(format!("row {seq} is missing: row {found} follows row {}", seq - 1));
        }
        match row_link(row, table, seq, &last)? {
            Some(link) => last = link,
            None => return broken(format!("row {seq} is not the one that was written")),
        }
    }
    match head {
        None if seq == 0 => Ok(Ok(())),
        Some((count, link)) if count == seq && link == last => Ok(Ok(())),
        Some((count, _)) => broken(format!("{seq} rows are left of {count}")),
        None => broken(format!("{seq} rows, and no head was recorded")),
    }
}

/// The row's link, if it holds.
fn row_link(row: &Row<'_>, table: &Table, seq: i64, last: &Link) -> rusqlite::Result<Option<Link>> {
    let width = table.columns.len();
    let mut values = Vec::with_capacity(width);
    for column in 1..=width {
        values.push(row.get_ref(column)?);
    }
    let want = link(last, table, seq, values.into_iter());
    Ok((row.get_ref(width + 1)? == ValueRef::Blob(&want)).then_some(want))
}

fn link<'a>(last: &Link, table: &Table, seq: i64, values: impl Iterator<Item = ValueRef<'a>>) -> Link {
    let mut hasher = blake3::Hasher::new();
    hasher.update(last).update(table.name.as_bytes()).update(&[0]).update(&seq.to_le_bytes());
    for value in values {
        let number;
        let (tag, bytes): (u8, &[u8]) = match value {
            ValueRef::Null => (0, &[]),
            ValueRef::Integer(i) => {
                number = i.to_le_bytes();
                (1, &number)
            }
            ValueRef::Real(x) => {
                number = x.to_bits().to_le_bytes();
                (2, &number)
            }
            ValueRef::Text(text) => (3, text),
            ValueRef::Blob(blob) => (4, blob),
        };
        hasher.update(&[tag]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    }
    *hasher.finalize().as_bytes()
}
