//! One line a step for people: `step 12  reward 0.531  loss -0.0123`.
use super::{Record, Sink, SinkError};
use cohort_protocol::StepId;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

/// Writes chosen values to a terminal or file.
pub struct TextSink<W> {
    out: W,
    names: Vec<String>,
}

impl<W: Write> TextSink<W> {
    /// Shows these metrics, in this order, where a record has them.
    pub fn new(out: W, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { out, names: names.into_iter().map(Into::into).collect() }
    }
}

impl<W> std::fmt::Debug for TextSink<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextSink").field("names", &self.names).finish_non_exhaustive()
    }
}

impl<W: Write + Send> Sink for TextSink<W> {
    fn name(&self) -> String {
        "text".into()
    }

    fn record(&mut self, record: &Record) -> Result<(), SinkError> {
        let mut line = format!("step {}", record.step);
        for name in &self.names {
            if let Some((_, value)) = record.metrics.iter().find(|(n, _)| n == name) {
                // Writing to a String cannot fail.
                let _ = write!(line, "  {name} {value:.4}");
            }
        }
        let written = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
        written.map_err(|source| SinkError { action: "write to", path: PathBuf::from(self.name()), source })
    }

    /// What people have read stays.
    fn cut_back(&mut self, _last: StepId) -> Result<(), SinkError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_it_was_asked_for() {
        let mut sink = TextSink::new(Vec::new(), ["reward", "kl", "loss"]);
        let metrics = vec![("loss".into(), -0.5), ("reward".into(), 0.25)];
        sink.record(&Record { step: StepId(3), metrics }).unwrap();
        assert_eq!(String::from_utf8(sink.out).unwrap(), "step 3  reward 0.2500  loss -0.5000\n");
    }
}
