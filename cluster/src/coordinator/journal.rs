//! The ledger's own thread: facts in, "durable" out. What waits is written together, one sync for all of it.
//!
//! Queue: [`QUEUE`] requests; when it is full the coordinator waits, and with it every worker that delivers.
use crate::controller::RecordId;
use crate::ledger::{Accepted, Accounts, Entry, LedgerError, RunLock};
use cohort_protocol::messages::reward::ScoreReply;
use cohort_protocol::{GroupId, TrajectoryBatch};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};

/// Requests that wait.
const QUEUE: usize = 1024;
/// Records written in one transaction, at most: with small groups two syncs are shared by some 500 of them.
const BATCH: usize = 1024;
/// Bytes of deliveries after which a transaction takes no further record.
const BATCH_BYTES: usize = 16 << 20;

/// A group as the ledger holds it.
pub(super) type StoredGroup = (Option<Accepted<TrajectoryBatch>>, Option<Accepted<ScoreReply>>);

enum Request {
    Record(RecordId, Vec<Entry>),
    Read(GroupId, oneshot::Sender<Result<StoredGroup, LedgerError>>),
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
    /// Gives the ledger a thread, and the lock that keeps other coordinators from it. `recorded` is called there, in order,
    /// for each batch of facts.
    pub(super) fn start(
        ledger: Box<dyn Accounts>,
        lock: RunLock,
        recorded: impl Fn(Result<RecordId, LedgerError>) + Send + 'static,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, inbox) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
            write_all(ledger, inbox, &recorded);
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

fn write_all(
    mut ledger: Box<dyn Accounts>,
    mut inbox: mpsc::Receiver<Request>,
    recorded: &dyn Fn(Result<RecordId, LedgerError>),
) {
    let mut next = inbox.blocking_recv();
    while let Some(request) = next.take() {
        match request {
            Request::Read(group, reply) => {
                let reader = ledger.reader();
                let found = reader.trajectories(group).and_then(|t| Ok((t, reader.scores(group)?)));
                // Whoever asked may have been drained meanwhile.
                let _ = reply.send(found);
            }
            Request::Record(id, mut entries) => {
                let (mut ids, mut bytes) = (vec![id], bytes_of(&entries));
                while ids.len() < BATCH && bytes < BATCH_BYTES {
                    match inbox.try_recv() {
                        Ok(Request::Record(id, more)) => {
                            ids.push(id);
                            bytes += bytes_of(&more);
                            entries.extend(more);
                        }
                        Ok(other) => {
                            next = Some(other);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                match ledger.apply(&entries) {
                    Ok(()) => ids.into_iter().for_each(|id| recorded(Ok(id))),
                    Err(error) => return recorded(Err(error)),
                }
            }
        }
        if next.is_none() {
            next = inbox.blocking_recv();
        }
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
