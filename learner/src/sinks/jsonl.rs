//! `metrics.jsonl`: one object a line, `{"step":12,"reward":0.5,..}`; a value that is not finite is `null`.
use super::{Record, Sink, SinkError};
use cohort_protocol::StepId;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Appends to a file of JSON lines.
#[derive(Debug)]
pub struct JsonlSink {
    path: PathBuf,
    file: File,
}

impl JsonlSink {
    /// Opens or makes the file; call [`Sink::cut_back`] before the first record of a resumed run.
    pub fn open(path: &Path) -> Result<Self, SinkError> {
        let file = append_to(path).map_err(failed("open", path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }
}

impl Sink for JsonlSink {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn record(&mut self, record: &Record) -> Result<(), SinkError> {
        let mut object = Map::new();
        object.insert("step".into(), record.step.0.into());
        object.extend(record.metrics.iter().map(|(name, value)| (name.clone(), Value::from(*value))));
        let line = format!("{}\n", Value::Object(object));
        // One write a line: a reader and a crash see whole lines, but for a full disk.
        self.file.write_all(line.as_bytes()).map_err(failed("append to", &self.path))
    }

    fn cut_back(&mut self, last: StepId) -> Result<(), SinkError> {
        let text = std::fs::read(&self.path).map_err(failed("read", &self.path))?;
        let kept: Vec<&[u8]> =
            text.split_inclusive(|&b| b == b'\n').filter(|line| step_of(line).is_some_and(|s| s <= last)).collect();
        let temporary = self.path.with_extension("jsonl.partial");
        let rewrite = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&kept.concat())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            append_to(&self.path)
        };
        self.file = rewrite().map_err(failed("rewrite", &self.path))?;
        Ok(())
    }
}

/// The step of a whole line; `None` for what a crash cut off.
fn step_of(line: &[u8]) -> Option<StepId> {
    let value: Value = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
    value.get("step")?.as_u64().map(StepId)
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SinkError {
    let path = path.to_path_buf();
    move |source| SinkError { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, reward: f64) -> Record {
        Record { step: StepId(step), metrics: vec![("reward".into(), reward), ("loss".into(), -0.25)] }
    }

    #[test]
    fn is_cut_back_to_the_last_commit_and_fed_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut sink = JsonlSink::open(&path).unwrap();
        for step in 0..4 {
            sink.record(&record(step, 0.1)).unwrap();
        }
        // A crash in the middle of a line.
        sink.file.write_all(b"{\"step\":1,\"rew").unwrap();
        drop(sink);
        let mut sink = JsonlSink::open(&path).unwrap();
        sink.cut_back(StepId(2)).unwrap();
        sink.record(&record(3, f64::NAN)).unwrap();
        let lines: Vec<String> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[2], r#"{"step":2,"reward":0.1,"loss":-0.25}"#);
        assert_eq!(lines[3], r#"{"step":3,"reward":null,"loss":-0.25}"#);
    }

    #[test]
    fn an_error_names_the_file() {
        let error = JsonlSink::open(Path::new("/nowhere/metrics.jsonl")).unwrap_err().to_string();
        assert!(error.starts_with("cannot open /nowhere/metrics.jsonl: "), "{error}");
    }
}
