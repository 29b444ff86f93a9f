//! Where prompts come from: which row a training group gets, which rows are held out.
//!
//! Invariants
//! - **D1** a row is training or held-out, never both; which is decided by the split key alone.
//! - **D2** group `g`'s row is a pure function of (file, run seed, g): a restarted coordinator leases the same prompts.
//! - **D3** every epoch visits every training row once.
use crate::draw::{hash, permute};
use crate::{EnvironmentConfig, RolloutError};
use cohort_protocol::{GroupId, SampledItem};
use serde_json::Value;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

/// A source of prompts.
pub trait Dataset: Send + Sync + std::fmt::Debug {
    /// Training rows of one epoch.
    fn train_len(&self) -> u64;
    /// The row of a training group; groups run on through epochs.
    fn train(&self, group: GroupId) -> SampledItem;
    /// Held-out rows.
    fn heldout_len(&self) -> u64;
    /// A held-out row; rows past the end begin again.
    fn heldout(&self, index: u64) -> SampledItem;
}

/// Default share of a file that is held out, and its bound.
const HELDOUT_SHARE: u64 = 10;
const HELDOUT_MOST: u64 = 256;

/// Rows of a file, split and shuffled.
#[derive(Debug)]
pub struct RowDataset {
    rows: Vec<Arc<str>>,
    heldout: u64,
    split_seed: u64,
    seed: u64,
    /// Training rows as they stand in the file, where they are not shuffled.
    in_order: Option<Vec<u64>>,
}

impl RowDataset {
    /// Splits rows that were read and checked. `place` names the file in errors, `seed` is the run's.
    pub fn new(rows: Vec<Value>, config: &EnvironmentConfig, seed: u64, place: &str) -> Result<Self, RolloutError> {
        let fail = |problem: String| Err(RolloutError::Data { place: place.to_owned(), problem });
        let n = rows.len() as u64;
        let default = (n / HELDOUT_SHARE).clamp(u64::from(n > 1), HELDOUT_MOST);
        let heldout = config.heldout.map_or(default, u64::from);
        if heldout >= n {
            return fail(format!("environment.heldout = {heldout} of {n} rows leaves none to train on"));
        }
        let rows = rows.into_iter().map(|row| row.to_string().into()).collect();
        let mut data = Self { rows, heldout, split_seed: config.split_seed, seed, in_order: None };
        if !config.shuffle {
            let mut training: Vec<u64> = (heldout..n).map(|i| data.row(i)).collect();
            training.sort_unstable();
            data.in_order = Some(training);
        }
        Ok(data)
    }

    /// The `index`-th row in the order of the split: held-out rows first.
    fn row(&self, index: u64) -> u64 {
        permute(index, self.rows.len() as u64, hash(&[self.split_seed, SPLIT]))
    }

    fn item(&self, row: u64) -> SampledItem {
        SampledItem { row, json: self.rows[row as usize].to_string() }
    }
}

const SPLIT: u64 = 1;
const EPOCH: u64 = 2;

impl Dataset for RowDataset {
    fn train_len(&self) -> u64 {
        self.rows.len() as u64 - self.heldout
    }

    fn train(&self, group: GroupId) -> SampledItem {
        let n = self.train_len();
        let (epoch, place) = (group.0 / n, group.0 % n);
        self.item(match &self.in_order {
            Some(rows) => rows[place as usize],
            None => self.row(self.heldout + permute(place, n, hash(&[self.seed, EPOCH, epoch]))),
        })
    }

    fn heldout_len(&self) -> u64 {
        self.heldout
    }

    fn heldout(&self, index: u64) -> SampledItem {
        self.item(self.row(if self.heldout == 0 { 0 } else { index % self.heldout }))
    }
}

/// Training rows of one file, held-out rows of another, in the order of that file.
#[derive(Debug)]
pub struct TwoFiles {
    train: RowDataset,
    heldout: Vec<Arc<str>>,
}

impl TwoFiles {
    /// Rows that were read and checked; `places` names their files in errors.
    pub fn new(
        train: Vec<Value>,
        heldout: Vec<Value>,
        config: &EnvironmentConfig,
        seed: u64,
        places: (&str, &str),
    ) -> Result<Self, RolloutError> {
        let fail = |problem: String| Err(RolloutError::Data { place: places.1.to_owned(), problem });
        let wanted = config.heldout.map_or(heldout.len(), |n| n as usize);
        if wanted > heldout.len() {
            return fail(format!("environment.heldout = {wanted}, the file has {} rows", heldout.len()));
        }
        let known: HashSet<String> = train.iter().map(Value::to_string).collect();
        let heldout: Vec<Arc<str>> = heldout.into_iter().take(wanted).map(|row| row.to_string().into()).collect();
        if let Some(i) = heldout.iter().position(|row| known.contains(&**row)) {
            return fail(format!("row {} is a training row too, in {}", i + 1, places.0));
        }
        let all = EnvironmentConfig { heldout: Some(0), ..config.clone() };
        Ok(Self { train: RowDataset::new(train, &all, seed, places.0)?, heldout })
    }
}

impl Dataset for TwoFiles {
    fn train_len(&self) -> u64 {
        self.train.train_len()
    }

    fn train(&self, group: GroupId) -> SampledItem {
        self.train.train(group)
    }

    fn heldout_len(&self) -> u64 {
        self.heldout.len() as u64
    }

    fn heldout(&self, index: u64) -> SampledItem {
        let row = index % self.heldout_len().max(1);
        SampledItem { row, json: self.heldout.get(row as usize).map(ToString::to_string).unwrap_or_default() }
    }
}

/// Reads rows: `.jsonl` is one object a line; `.json` an array of objects, or an object whose only array holds them.
///
/// Errors: [`RolloutError::Data`] with file and line.
pub fn read_rows(path: &Path) -> Result<Vec<Value>, RolloutError> {
    let place = path.display().to_string();
    let fail = |place: String, problem: String| RolloutError::Data { place, problem };
    let text = std::fs::read_to_string(path).map_err(|e| fail(place.clone(), format!("cannot be read: {e}")))?;
    let rows = match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl" | "ndjson") => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let parse = |(i, line): (usize, &str)| {
                let value = serde_json::from_str(line).map_err(|e| fail(format!("{place}:{}", i + 1), json_problem(&e)))?;
                Ok((i + 1, value))
            };
            lines.map(parse).collect::<Result<Vec<(usize, Value)>, RolloutError>>()?
        }
        Some("json") => {
            let whole: Value =
                serde_json::from_str(&text).map_err(|e| fail(format!("{place}:{}", e.line()), json_problem(&e)))?;
            let list = match whole {
                Value::Array(list) => Some(list),
                Value::Object(map) => {
                    let mut arrays = map.into_iter().filter_map(|(_, v)| if let Value::Array(a) = v { Some(a) } else { None });
                    arrays.next().filter(|_| arrays.next().is_none())
                }
                _ => None,
            };
            let list = list.ok_or_else(|| fail(place.clone(), "an array of objects is needed".into()))?;
            list.into_iter().enumerate().map(|(i, v)| (i + 1, v)).collect()
        }
        other => {
            let what = other.map_or_else(|| "no ending".into(), |e| format!("the ending .{e}"));
            return Err(fail(place, format!("{what}; data files are .jsonl or .json")));
        }
    };
    if rows.is_empty() {
        return Err(fail(place, "it has no rows: there is nothing to generate from".into()));
    }
    rows.into_iter()
        .map(|(i, row)| match row {
            Value::Object(_) => Ok(row),
            other => Err(fail(format!("{place}:{i}"), format!("a row is a JSON object, this is {}", kind(&other)))),
        })
        .collect()
}

fn json_problem(error: &serde_json::Error) -> String {
    format!("malformed JSON at column {}: {error}", error.column())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    fn dataset(n: usize, config: &EnvironmentConfig, seed: u64) -> Result<RowDataset, RolloutError> {
        RowDataset::new((0..n).map(|i| json!({"prompt": i})).collect(), config, seed, "data.jsonl")
    }

    #[test]
    fn a_second_file_holds_out_all_its_rows_and_none_of_the_first() {
        let rows = |from: usize, to: usize| (from..to).map(|i| json!({"prompt": i})).collect::<Vec<_>>();
        let make = |train, heldout, config: &EnvironmentConfig| TwoFiles::new(train, heldout, config, 3, ("a.jsonl", "b.jsonl"));
        let config = EnvironmentConfig::default();
        let two = make(rows(0, 9), rows(20, 25), &config).unwrap();
        let train: BTreeSet<String> = (0..9).map(|g| two.train(GroupId(g)).json).collect();
        assert_eq!((two.train_len(), train.len(), two.heldout_len()), (9, 9, 5));
        assert_eq!(two.heldout(6).json, r#"{"prompt":21}"#);
        let error = make(rows(0, 9), rows(8, 12), &config).unwrap_err().to_string();
        assert!(error.contains("b.jsonl") && error.contains("row 1 is a training row too, in a.jsonl"), "{error}");
        let many = EnvironmentConfig { heldout: Some(6), ..config };
        assert!(make(rows(0, 9), rows(20, 25), &many).unwrap_err().to_string().contains("the file has 5 rows"));
    }

    #[test]
    fn the_split_is_disjoint_and_epochs_are_complete() {
        let config = EnvironmentConfig { heldout: Some(7), ..EnvironmentConfig::default() };
        let (one, two) = (dataset(50, &config, 1).unwrap(), dataset(50, &config, 2).unwrap());
        let rows = |d: &RowDataset, epoch: u64| (0..43).map(|g| d.train(GroupId(epoch * 43 + g)).row).collect::<Vec<_>>();
        let held: BTreeSet<u64> = (0..7).map(|i| one.heldout(i).row).collect();
        assert_eq!(held.len(), 7);
        for epoch in 0..3 {
            let all: BTreeSet<u64> = rows(&one, epoch).into_iter().collect();
            assert_eq!(all.len(), 43);
            assert!(all.is_disjoint(&held));
        }
        assert_ne!(rows(&one, 0), rows(&one, 1), "epochs differ");
        assert_ne!(rows(&one, 0), rows(&two, 0), "seeds differ");
        assert_eq!(held, (0..7).map(|i| two.heldout(i).row).collect(), "held-out rows do not depend on the run's seed");
    }

    #[test]
    fn without_shuffle_rows_keep_the_files_order() {
        let config = EnvironmentConfig { heldout: Some(3), shuffle: false, ..EnvironmentConfig::default() };
        let data = dataset(10, &config, 1).unwrap();
        let rows: Vec<u64> = (0..7).map(|g| data.train(GroupId(g)).row).collect();
        assert!(rows.is_sorted());
        assert_eq!(data.train(GroupId(7)).row, rows[0]);
    }

    #[test]
    fn sets_that_cannot_be_split_are_refused() {
        let all = EnvironmentConfig { heldout: Some(5), ..EnvironmentConfig::default() };
        assert!(dataset(5, &all, 1).unwrap_err().to_string().contains("environment.heldout = 5 of 5 rows"));
        let one = dataset(1, &EnvironmentConfig::default(), 1).unwrap();
        assert_eq!((one.train_len(), one.heldout_len()), (1, 0));
    }

    #[test]
    fn malformed_files_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            read_rows(&path)
        };
        assert_eq!(read("a.jsonl", "{\"a\":1}\n\n{\"a\":2}\n").unwrap().len(), 2);
        let error = read("a.jsonl", "{\"a\":1}\n\n{\"a\":\n").unwrap_err().to_string();
        assert!(error.contains("a.jsonl:3: malformed JSON"), "{error}");
        let error = read("a.jsonl", "{}\n[1]\n").unwrap_err().to_string();
        assert!(error.contains("a.jsonl:2: a row is a JSON object, this is an array"), "{error}");
        assert_eq!(read("a.json", "{\"scenarios\": [{}, {}]}").unwrap().len(), 2);
        assert!(read("a.json", "3").is_err());
        assert!(read("a.csv", "a,b").unwrap_err().to_string().contains(".jsonl or .json"));
        assert!(read_rows(&dir.path().join("none.json")).unwrap_err().to_string().contains("cannot be read"));
    }
}
