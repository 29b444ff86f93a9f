//! What the coordinator's process says to its agent: JSON lines over the progress pipe. Besides news for people they carry
//! proofs of life and requests to replace a hung worker, so that only a process's own parent ever kills it: a number read
//! from a file may by then belong to somebody else.
use crate::coordinator::Replacer;
use crate::progress::{Progress, ProgressSink};
use cohort_protocol::WorkerId;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Between two proofs of life of a coordinator that has not begun yet.
const BEAT: Duration = Duration::from_secs(1);

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// For people.
    News(Progress),
    /// A worker hangs.
    Replace { worker: WorkerId, pid: u32, why: String },
    /// The coordinator is still starting.
    Alive,
}

/// The coordinator's end.
pub(super) struct Teller {
    pipe: Mutex<File>,
    /// The run's one task has spoken: from now on only what it says proves that it moves.
    begun: AtomicBool,
}

impl Teller {
    pub(super) fn new(pipe: File) -> Arc<Self> {
        Arc::new(Self { pipe: Mutex::new(pipe), begun: AtomicBool::new(false) })
    }

    /// Says each second that the process lives, until the run's task speaks for itself.
    pub(super) async fn beat(self: Arc<Self>) {
        let mut tick = tokio::time::interval(BEAT);
        while !self.begun.load(Ordering::Relaxed) {
            tick.tick().await;
            self.say(&Line::Alive);
        }
    }

    /// Waits only for an agent that reads nothing, which is one that is stopped.
    fn say(&self, line: &Line) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        // An agent that is gone takes this process with it.
        let _ = self.pipe.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text);
    }
}

impl ProgressSink for Teller {
    fn emit(&self, news: Progress) {
        if matches!(news, Progress::Actors(_)) {
            self.begun.store(true, Ordering::Relaxed);
        }
        self.say(&Line::News(news));
    }
}

impl Replacer for Teller {
    fn replace(&self, worker: WorkerId, pid: u32, why: &str) {
        self.say(&Line::Replace { worker, pid, why: why.to_owned() });
    }
}

/// The agent's end.
pub(super) struct Heard {
    /// When the coordinator said anything last.
    pub last: watch::Receiver<Instant>,
    /// Workers to replace, and why.
    pub replace: mpsc::Receiver<(WorkerId, u32, String)>,
}

/// Passes the coordinator's news on, from whichever incarnation they come.
pub(super) fn listen(pipe: PipeReader, progress: Arc<dyn ProgressSink>) -> std::io::Result<Heard> {
    let (spoke, last) = watch::channel(Instant::now());
    // When it is full the coordinator has said so before.
    let (order, replace) = mpsc::channel(64);
    std::thread::Builder::new().name("progress".into()).spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            // A coordinator killed in the middle of a line leaves half of one; the next line is whole again.
            let Ok(line) = serde_json::from_str(&line) else { continue };
            spoke.send_replace(Instant::now());
            match line {
                Line::News(news) => progress.emit(news),
                Line::Replace { worker, pid, why } => {
                    // Full, or nobody is supervised any more.
                    let _ = order.try_send((worker, pid, why));
                }
                Line::Alive => {}
            }
        }
    })?;
    Ok(Heard { last, replace })
}

/// For how long the coordinator has been silent. Pure.
///
/// After a pause of the agent itself (it was stopped, or the machine slept) the coordinator gets the whole limit again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    heard: Instant,
    looked: Instant,
}

/// A pause between two looks that makes what was not heard meanwhile meaningless.
const OWN_STALL: Duration = Duration::from_secs(5);

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: now, looked: now }
    }

    /// It was started, or killed, just now.
    pub(super) fn restart(&mut self, now: Instant) {
        self.heard = now;
    }

    /// A look at the clock, `last` being when it spoke last. Gives the length of the silence.
    pub(super) fn look(&mut self, now: Instant, last: Instant) -> Duration {
        if now.saturating_duration_since(self.looked) > OWN_STALL {
            self.heard = now;
        }
        self.looked = now;
        self.heard = self.heard.max(last);
        now.saturating_duration_since(self.heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::Role;
    use std::io::Write;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_silence_is_measured_and_a_pause_of_the_agent_is_none() {
        let begun = Instant::now();
        let mut silence = Silence::new(begun);
        let mut tell = |after: u32, last: u32| silence.look(begun + after * S, begun + last * S);
        assert!((4..=35).all(|t| tell(t, 4) == (t - 4) * S));
        assert_eq!(tell(36, 36), 0 * S, "it spoke");
        assert_eq!(tell(99, 36), 0 * S, "the agent itself was stopped");
        assert!((100..=130).all(|t| tell(t, 36) == (t - 99) * S));
        silence.restart(begun + 130 * S);
        assert_eq!(silence.look(begun + 131 * S, begun), S, "another one has been started");
    }

    struct Counting(Mutex<Vec<Progress>>);

    impl ProgressSink for Counting {
        fn emit(&self, news: Progress) {
            self.0.lock().unwrap().push(news);
        }
    }

    #[test]
    fn news_and_orders_arrive_over_a_torn_line() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"{\"news\":{\"event\":\"not").unwrap();
        writer.write_all(b"\n").unwrap();
        let teller = Teller::new(File::from(std::os::fd::OwnedFd::from(writer)));
        let news = Arc::new(Counting(Mutex::default()));
        let mut heard = listen(reader, news.clone()).unwrap();
        teller.emit(Progress::Notice("hello".into()));
        teller.replace(WorkerId { role: Role::Rollout, index: 2 }, 7, "it hangs");
        let order = heard.replace.blocking_recv().unwrap();
        assert_eq!(order, (WorkerId { role: Role::Rollout, index: 2 }, 7, "it hangs".to_owned()));
        assert_eq!(*news.0.lock().unwrap(), [Progress::Notice("hello".into())]);
    }
}
