//! The ledger's own thread: facts in, "durable" out. What waits is written together, one sync for all of it.
//!
//! Queue: [`QUEUE`] requests; when it is full the coordinator waits, and with it every worker that delivers. While the disk
//! is full more are taken, so that the coordinator moves: those of the groups under way, as it begins no others.
use crate::controller::RecordId;
use crate::ledger::{Accepted, Accounts, Entry, LedgerError, RunLock};
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{GroupId, TrajectoryBatch};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

/// Requests that wait.
const QUEUE: usize = 1024;
/// Records written in one transaction, at most: with small groups two syncs are shared by some 500 of them.
const BATCH: usize = 1024;
/// Bytes of deliveries after which a transaction takes no further record.
const BATCH_BYTES: usize = 16 << 20;

/// Between two looks whether a full disk has room.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks at the queue while the disk is full.
const GLANCE: Duration = Duration::from_millis(20);

/// A group as the ledger holds it.
pub(super) type StoredGroup = (Option<Accepted<TrajectoryBatch>>, Option<Accepted<ScoreReply>>);

enum Request {
    Record(RecordId, Vec<Entry>),
    Read(GroupId, oneshot::Sender<Result<StoredGroup, LedgerError>>),
}

/// What became of facts.
#[derive(Debug)]
pub(super) enum Written {
    /// They are durable.
    Recorded(RecordId),
    /// There is no room; they are tried again every [`LOOK`] until there is.
    NoRoom(PathBuf, LedgerError),
    /// The ledger takes nothing more, and the thread has ended.
    Failed(LedgerError),
}

/// The coordinator's hold on the thread. The thread ends when the last one is dropped.
#[derive(Debug, Clone)]
pub(super) struct Journal(mpsc::Sender<Request>);

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Record(id, entries) => write!(f, "Record({id:?}, {} entries)", entries.len()),
            Self::Read(group, _) => write!(f, "Read({group})"),
        }
    }
}

impl Journal {
    /// Gives the ledger a thread, and the lock that keeps other coordinators from it. `told` is called there, in order, for
    /// each batch of facts.
    pub(super) fn start(
        ledger: Box<dyn Accounts>,
        lock: RunLock,
        told: impl Fn(Written) + Send + 'static,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, inbox) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
            Writer { ledger, inbox, waiting: VecDeque::new(), told: &told }.write_all();
            drop(lock);
        })?;
        Ok((Self(sender), thread))
    }

    /// Orders facts to be recorded. `false`: the thread is gone.
    pub(super) async fn record(&self, id: RecordId, entries: Vec<Entry>) -> bool {
        self.0.send(Request::Record(id, entries)).await.is_ok()
    }

    /// Reads a group back; `None`: the thread is gone.
    pub(super) async fn read(&self, group: GroupId) -> Option<Result<StoredGroup, LedgerError>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Request::Read(group, reply)).await.ok()?;
        answer.await.ok()
    }
}

/// The thread's own state.
struct Writer<'a> {
    ledger: Box<dyn Accounts>,
    inbox: mpsc::Receiver<Request>,
    /// Taken from the queue while there was no room.
    waiting: VecDeque<Request>,
    told: &'a dyn Fn(Written),
}

impl Writer<'_> {
    /// Until nobody asks any more, or the ledger takes nothing more.
    fn write_all(mut self) {
        while let Some(request) = self.waiting.pop_front().or_else(|| self.inbox.blocking_recv()) {
            match request {
                Request::Read(group, reply) => self.read(group, reply),
                Request::Record(id, entries) => {
                    let (ids, entries) = self.gather(id, entries);
                    if !self.write(ids, &entries) {
                        return;
                    }
                }
            }
        }
    }

    fn read(&self, group: GroupId, reply: oneshot::Sender<Result<StoredGroup, LedgerError>>) {
        let reader = self.ledger.reader();
        let found = reader.trajectories(group).and_then(|t| Ok((t, reader.scores(group)?)));
        // Whoever asked may have been drained meanwhile.
        let _ = reply.send(found);
    }

    /// What waits behind a record, up to the next one that reads.
    fn gather(&mut self, id: RecordId, mut entries: Vec<Entry>) -> (Vec<RecordId>, Vec<Entry>) {
        let (mut ids, mut bytes) = (vec![id], bytes_of(&entries));
        while ids.len() < BATCH && bytes < BATCH_BYTES {
            match self.waiting.pop_front().or_else(|| self.inbox.try_recv().ok()) {
                Some(Request::Record(id, more)) => {
                    ids.push(id);
                    bytes += bytes_of(&more);
                    entries.extend(more);
                }
                Some(read) => {
                    self.waiting.push_front(read);
                    break;
                }
                None => break,
            }
        }
        (ids, entries)
    }

    /// Makes entries durable, however long the disk is full. `false`: nothing more will be.
    fn write(&mut self, ids: Vec<RecordId>, entries: &[Entry]) -> bool {
        loop {
            match self.ledger.apply(entries) {
                Ok(()) => {
                    ids.into_iter().for_each(|id| (self.told)(Written::Recorded(id)));
                    return true;
                }
                Err(error) => match self.ledger.lacks_room(&error) {
                    Some(path) => (self.told)(Written::NoRoom(path, error)),
                    None => {
                        (self.told)(Written::Failed(error));
                        return false;
                    }
                },
            }
            if !self.rest() {
                return false;
            }
        }
    }

    /// The time between two tries, in which what is asked for is read. `false`: nobody is there any more.
    fn rest(&mut self) -> bool {
        let until = Instant::now() + LOOK;
        while Instant::now() < until {
            match self.inbox.try_recv() {
                Ok(Request::Read(group, reply)) => self.read(group, reply),
                Ok(record) => self.waiting.push_back(record),
                Err(TryRecvError::Empty) => std::thread::sleep(GLANCE),
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }
}

/// What entries add to the segments.
fn bytes_of(entries: &[Entry]) -> usize {
    let bytes = |entry: &Entry| match entry {
        Entry::Trajectories(accepted) => accepted.payload.len(),
        Entry::Scores(accepted) => accepted.payload.len(),
        _ => 0,
    };
    entries.iter().map(bytes).sum()
}
