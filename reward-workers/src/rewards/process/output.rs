//! What a plug-in prints: its standard error, to which the SDK has moved its standard output too. Lines go to the log,
//! the last ones into errors.
//!
//! Bounds: a line is cut at 2,000 bytes, 16 lines are kept for errors, 100 lines a second are logged; the rest is counted. A
//! program that prints more than 4 MiB a second waits.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

const LINE: usize = 2_000;
const KEPT: usize = 16;
const LOGGED_PER_S: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);
const READ_PER_S: usize = 4 << 20;

/// Follows a stream until it ends.
pub(super) struct Output {
    kept: Arc<Mutex<VecDeque<String>>>,
    task: JoinHandle<()>,
}

impl Output {
    /// Reads `from` in a task of the current runtime.
    pub(super) fn follow<R: AsyncRead + Unpin + Send + 'static>(plugin: &str, from: R) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::with_capacity(KEPT)));
        let log = Log { plugin: plugin.to_owned(), kept: kept.clone(), second: Instant::now(), logged: 0, dropped: 0 };
        Self { kept, task: tokio::task::spawn(log.follow(from)) }
    }

    /// The last lines, once the stream has ended or `wait` is over.
    pub(super) async fn tail(&mut self, wait: Duration) -> String {
        // A grandchild may hold the stream open; then what has come so far must do.
        let _ = timeout(wait, &mut self.task).await;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Log {
    plugin: String,
    kept: Arc<Mutex<VecDeque<String>>>,
    second: Instant,
    logged: u32,
    dropped: u64,
}

impl Log {
    async fn follow<R: AsyncRead + Unpin>(mut self, mut from: R) {
        let (mut line, mut buffer) = (Vec::new(), [0u8; 4096]);
        let (mut second, mut read) = (Instant::now(), 0);
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            read += n;
            if second.elapsed() >= SECOND {
                (second, read) = (Instant::now(), n);
            } else if read > READ_PER_S {
                tokio::time::sleep_until(second + SECOND).await;
            }
            for &byte in &buffer[..n] {
                match byte {
                    b'\n' => self.line(&std::mem::take(&mut line)),
                    byte if line.len() < LINE => line.push(byte),
                    _ => {}
                }
            }
        }
        if !line.is_empty() {
            self.line(&line);
        }
        self.report_dropped();
    }

    fn line(&mut self, bytes: &[u8]) {
        let line = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if self.second.elapsed() >= SECOND {
            self.report_dropped();
            (self.second, self.logged) = (Instant::now(), 0);
        }
        if self.logged < LOGGED_PER_S {
            self.logged += 1;
            info!(target: "cohort::plugin", plugin = self.plugin, line, "plugin_output");
        } else {
            self.dropped += 1;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(line);
    }

    fn report_dropped(&mut self) {
        if self.dropped > 0 {
            warn!(target: "cohort::plugin", plugin = self.plugin, lines = self.dropped, "plugin_output_not_logged");
            self.dropped = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_the_last_lines_cut_to_size() {
        let text = (0..500).map(|i| format!("line {i}\n")).collect::<String>() + &"x".repeat(5_000);
        let mut output = Output::follow("p", std::io::Cursor::new(text.into_bytes()));
        let tail = output.tail(Duration::from_secs(5)).await;
        let lines: Vec<_> = tail.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[14]), (KEPT, "line 485", "line 499"));
        assert_eq!(lines[15].len(), LINE);
    }
}
