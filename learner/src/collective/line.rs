//! The connection between the lead and one follower: messages in order, beats beside them, and a limit on how long either
//! waits for the other.
//!
//! Invariants
//! - **N1** the peer is read all the time, so its beats are heard whatever this rank does; what it says is queued, at most
//!   [`QUEUE`] messages, then its stream waits.
//! - **N2** a wait ends with a message, with the end of the connection, or when the peer's counter has stood still for the
//!   patience of this line. A dead process is noticed by the transport, sooner.
//! - **N3** the counter moves with a rank's own work; at the lead also while it waits for another follower, which it does for a
//!   bounded time only.
use super::CollectiveError;
use cohort_actors::transport::{Connection, Inbound, TransportError};
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::ranks::BetweenRanks;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Messages read and not yet taken: more than the values that a rank sends ahead.
const QUEUE: usize = 4 * super::stream::AHEAD;
/// Between two beats.
const BEAT: Duration = Duration::from_secs(1);
/// Between two signs that the lead waits.
const SIGN: Duration = Duration::from_millis(500);

/// What this rank has done so far; its beats carry it.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// A pulse that counts along with `work`, such as micro-batches done.
    #[must_use]
    pub fn of(work: Arc<AtomicU64>) -> Self {
        Self(work)
    }

    /// One more sign of progress.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Signs so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One end of it.
pub struct Line {
    peer: String,
    connection: Arc<dyn Connection>,
    inbox: Mutex<mpsc::Receiver<BetweenRanks>>,
    /// The peer's counter. Its sender goes with the connection.
    progress: watch::Receiver<u64>,
    ended: watch::Receiver<Option<String>>,
    patience: Duration,
    /// Moved while this end waits (N3).
    waiting: Option<Pulse>,
    _tasks: JoinSet<()>,
}

impl Line {
    /// Over a connection whose handshake is done. `leads`: this is the lead's end. Call it within a tokio runtime.
    #[must_use]
    pub fn open(peer: String, connection: Arc<dyn Connection>, pulse: &Pulse, patience: Duration, leads: bool) -> Self {
        let (said, inbox) = mpsc::channel(QUEUE);
        let (heard, progress) = watch::channel(0);
        let (end, ended) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(read(connection.clone(), said, heard, end));
        tasks.spawn(beat(connection.clone(), pulse.clone()));
        let (inbox, waiting) = (Mutex::new(inbox), leads.then(|| pulse.clone()));
        Self { peer, connection, inbox, progress, ended, patience, waiting, _tasks: tasks }
    }

    /// Whom it leads to.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Ends it; the peer sees the reason.
    pub fn close(&self, why: &str) {
        self.connection.close(why);
    }

    /// Whether it stands, without waiting.
    pub fn check(&self, during: &'static str) -> Result<(), CollectiveError> {
        match &*self.ended.borrow() {
            Some(why) => Err(CollectiveError::Lost { rank: self.peer.clone(), during, why: why.clone() }),
            None => Ok(()),
        }
    }

    /// The peer's counter.
    pub(super) fn progress(&self) -> u64 {
        *self.progress.borrow()
    }

    /// How long the peer may stand still.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// A sign that this end waits, where it leads (N3).
    pub(super) fn sign(&self) {
        if let Some(pulse) = &self.waiting {
            pulse.beat();
        }
    }

    /// Returns when it has ended.
    pub async fn end(&self) {
        // An end that is gone without a word is an end too.
        let _ = self.ended.clone().wait_for(Option::is_some).await;
    }

    /// Sends in order.
    pub async fn send(&self, message: &BetweenRanks, during: &'static str) -> Result<(), CollectiveError> {
        let sent = async { self.connection.send(frame(message)?).await.map_err(|e| e.to_string()) };
        sent.await.map_err(|why| self.lost(during, why))
    }

    /// Sends on a stream of its own; returns when the peer has it.
    pub async fn send_bulk(&self, message: &BetweenRanks, during: &'static str) -> Result<(), CollectiveError> {
        let sent = async { self.connection.send_bulk(frame(message)?).await.map_err(|e| e.to_string()) };
        sent.await.map_err(|why| self.lost(during, why))
    }

    /// The next message, however long it takes to come.
    pub async fn next(&self) -> Result<BetweenRanks, CollectiveError> {
        match self.inbox.lock().await.recv().await {
            Some(message) => Ok(message),
            None => Err(self.lost("its rest", String::new())),
        }
    }

    /// The next message of a peer that has something to do (N2).
    ///
    /// Errors: [`CollectiveError::Lost`], [`CollectiveError::Stuck`], and what the peer says of a failure of its own.
    pub async fn recv(&self, during: &'static str) -> Result<BetweenRanks, CollectiveError> {
        let mut inbox = self.inbox.lock().await;
        let message = tokio::select! {
            biased;
            message = inbox.recv() => message,
            () = self.stands_still() => {
                let (rank, after) = (self.peer.clone(), self.patience);
                return Err(CollectiveError::Stuck { rank, during, after });
            }
        };
        match message {
            Some(BetweenRanks::Failed(failed)) => Err(CollectiveError::Failed { rank: self.peer.clone(), failed }),
            Some(message) => Ok(message),
            None => Err(self.lost(during, String::new())),
        }
    }

    /// The peer did something else than what was due.
    #[must_use]
    pub fn out_of_step(&self, during: &'static str, got: &BetweenRanks) -> CollectiveError {
        let what = match got {
            BetweenRanks::Values(values) => format!("{} values", values.len()),
            BetweenRanks::Step(step) => format!("step {}", step.intent.step),
            BetweenRanks::Note(note) => format!("a note of {} bytes", note.len()),
            other => format!("{other:?}"),
        };
        CollectiveError::OutOfStep { rank: self.peer.clone(), during, why: format!("it sent {what}") }
    }

    fn lost(&self, during: &'static str, why: String) -> CollectiveError {
        // What ended the connection says more than what was noticed of it.
        let why = self.ended.borrow().clone().unwrap_or(why);
        CollectiveError::Lost { rank: self.peer.clone(), during, why }
    }

    /// Returns when the peer's counter has not moved for the line's patience.
    async fn stands_still(&self) {
        let mut progress = self.progress.clone();
        progress.mark_unchanged();
        let mut signs = interval(SIGN);
        loop {
            let moved = async {
                if progress.changed().await.is_err() {
                    // The connection has ended, which the inbox says better.
                    std::future::pending::<()>().await;
                }
            };
            let waits = async {
                match &self.waiting {
                    Some(pulse) => loop {
                        signs.tick().await;
                        pulse.beat();
                    },
                    None => std::future::pending().await,
                }
            };
            let limit = timeout(self.patience, moved);
            tokio::select! {
                moved = limit => if moved.is_err() { return },
                () = waits => {}
            }
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.connection.close("this rank has left the group");
    }
}

fn frame(message: &BetweenRanks) -> Result<cohort_protocol::Frame, String> {
    message.to_frame().map_err(|e| e.to_string())
}

async fn beat(connection: Arc<dyn Connection>, pulse: Pulse) {
    let mut ticks = interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(frame) = BetweenRanks::Beat(pulse.count()).to_frame() else { return };
        if connection.send(frame).await.is_err() {
            return;
        }
    }
}

/// Until the connection ends or breaks a rule.
async fn read(
    connection: Arc<dyn Connection>,
    said: mpsc::Sender<BetweenRanks>,
    heard: watch::Sender<u64>,
    end: watch::Sender<Option<String>>,
) {
    let why = loop {
        match receive(connection.as_ref(), &said, &heard).await {
            Ok(()) => {}
            Err(error) => break error.to_string(),
        }
    };
    connection.close(&why);
    end.send_replace(Some(why));
}

async fn receive(
    connection: &dyn Connection,
    said: &mpsc::Sender<BetweenRanks>,
    heard: &watch::Sender<u64>,
) -> Result<(), TransportError> {
    let (frame, ack) = match connection.recv().await? {
        Inbound::Control(frame) => (frame, None),
        Inbound::Bulk(frame, ack) => (frame, Some(ack)),
    };
    let bad = |source| TransportError::Codec { peer: connection.peer(), source };
    match BetweenRanks::from_frame(&frame).map_err(bad)? {
        BetweenRanks::Beat(count) => {
            heard.send_if_modified(|known| std::mem::replace(known, count) != count);
        }
        message => {
            // What is sent is progress too.
            heard.send_modify(|_| {});
            // A line that nobody reads any more is closed by its owner.
            let _ = said.send(message).await;
        }
    }
    if let Some(ack) = ack {
        ack.accept();
    }
    Ok(())
}
