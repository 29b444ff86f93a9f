//! News for whoever watches the run, past a watcher that does not read.
//!
//! Queue: [`QUEUE`] pieces. The state of the actors is dropped once half of it is taken (it comes again four times a
//! second), everything when it is full: progress is not accounting, and the ledger does not wait for a terminal.
use crate::progress::{Progress, ProgressSink};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;

/// Pieces that wait for a slow watcher.
const QUEUE: usize = 256;
/// How long the last ones are waited for at the end.
const LAST: Duration = Duration::from_secs(1);

/// The coordinator's side.
#[derive(Debug)]
pub(super) struct News {
    queue: SyncSender<Progress>,
    waiting: Arc<AtomicUsize>,
    told: oneshot::Receiver<()>,
}

impl News {
    /// Starts the thread that tells `sink`.
    pub(super) fn start(sink: Arc<dyn ProgressSink>) -> io::Result<Self> {
        let (queue, queued) = sync_channel(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let (tell, told) = oneshot::channel();
        let taken = waiting.clone();
        thread::Builder::new().name("news".to_owned()).spawn(move || {
            for news in queued {
                taken.fetch_sub(1, Ordering::Relaxed);
                sink.emit(news);
            }
            // A coordinator that no longer waits needs no telling.
            let _ = tell.send(());
        })?;
        Ok(Self { queue, waiting, told })
    }

    /// Tells, or drops; never waits.
    pub(super) fn emit(&self, news: Progress) {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let unimportant = matches!(news, Progress::Actors(_)) && waiting >= QUEUE / 2;
        if unimportant || self.queue.try_send(news).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Gives a watcher that reads the time to hear the last of it.
    pub(super) async fn finish(self) {
        let Self { queue, told, .. } = self;
        drop(queue);
        // One that does not read hears no more.
        let _ = tokio::time::timeout(LAST, told).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, PoisonError};
    use std::time::Instant;

    /// Reads nothing until its gate is opened.
    struct Gate(Mutex<()>, Mutex<Vec<Progress>>);

    impl ProgressSink for Gate {
        fn emit(&self, news: Progress) {
            let _open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.1.lock().unwrap().push(news);
        }
    }

    #[tokio::test]
    async fn a_watcher_that_does_not_read_holds_nobody_up() {
        let gate = Arc::new(Gate(Mutex::new(()), Mutex::new(Vec::new())));
        let closed = gate.0.lock().unwrap();
        let begun = Instant::now();
        let news = News::start(gate.clone()).unwrap();
        for n in 0..10 * QUEUE {
            news.emit(Progress::Actors(Vec::new()));
            news.emit(Progress::Notice(n.to_string()));
        }
        assert!(begun.elapsed() < LAST, "emitting waited");
        drop(closed);
        news.finish().await;
        let heard = gate.1.lock().unwrap();
        let notices: Vec<&Progress> = heard.iter().filter(|n| matches!(n, Progress::Notice(_))).collect();
        assert!(heard.len() <= QUEUE + 1 && notices.len() > QUEUE / 2, "{} of {}", notices.len(), heard.len());
        assert_eq!(notices[0], &Progress::Notice("0".into()), "the first ones, in order");
    }

    #[tokio::test]
    async fn a_watcher_that_never_reads_does_not_keep_the_coordinator() {
        let gate = Arc::new(Gate(Mutex::new(()), Mutex::new(Vec::new())));
        let news = News::start(gate.clone()).unwrap();
        let held = gate.clone();
        let (hold, release) = std::sync::mpsc::channel::<()>();
        let (closed, is_closed) = std::sync::mpsc::channel();
        let keeper = thread::spawn(move || {
            let _closed = held.0.lock().unwrap();
            closed.send(()).unwrap();
            release.recv().unwrap_err();
        });
        is_closed.recv().unwrap();
        news.emit(Progress::Notice("unheard".into()));
        let begun = Instant::now();
        news.finish().await;
        assert!(begun.elapsed() < 3 * LAST);
        drop(hold);
        keeper.join().unwrap();
    }
}
