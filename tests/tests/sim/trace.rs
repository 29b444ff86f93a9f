//! What happened, as a hash of everything and as the last lines of it.
use crate::seen::Seen;
use std::collections::VecDeque;
use std::time::Duration;

/// Lines that are kept.
const LINES: usize = 60;
/// Characters of a line.
const WIDTH: usize = 260;

/// A run's trace.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hasher: blake3::Hasher,
    last: VecDeque<String>,
}

impl Trace {
    pub(crate) fn note(&mut self, now: Duration, seen: &Seen) {
        let line = seen.to_string();
        self.hasher.update(&now.as_micros().to_le_bytes()).update(line.as_bytes());
        if line == "." {
            return;
        }
        if self.last.len() == LINES {
            self.last.pop_front();
        }
        let line: String = line.chars().take(WIDTH).collect();
        self.last.push_back(format!("{:9.3} s  {line}", now.as_secs_f64()));
    }

    pub(crate) fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }

    pub(crate) fn last(&self) -> Vec<String> {
        self.last.iter().cloned().collect()
    }
}
