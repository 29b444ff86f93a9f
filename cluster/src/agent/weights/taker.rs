//! Takes chunks from other hosts: one connection a source, many chunks under way on each.
//!
//! Invariant **T1**: every request is answered, by bytes or by why not, within `PATIENCE` of its last sign of life.
use super::place::{Arrived, Base, Place};
use bytes::Bytes;
use cohort_actors::certs::Identity;
use cohort_actors::transport::reach::Reach;
use cohort_actors::{Dialer, LinkOptions, LinkSender, Shutdown, WorkerLink};
use cohort_protocol::WorkerId;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::node::ChunkName;
use cohort_protocol::messages::weights::{FetcherToHolder, HolderToFetcher};
use cohort_protocol::version::WEIGHT_DELTAS;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::timeout;

/// For one chunk: connecting, waiting for its turn and arriving.
const PATIENCE: Duration = Duration::from_secs(20);
/// For a source to be reached.
const REACH: Duration = Duration::from_secs(5);

type Answer = Result<Given, String>;
type Sources = HashMap<(WorkerId, SocketAddr), Arc<OnceCell<Source>>>;
/// Who waits for which chunk; none once the connection has ended, so that nobody begins to wait then.
type Pending = Arc<Mutex<Option<HashMap<ChunkName, oneshot::Sender<Answer>>>>>;

/// What a source gave.
#[derive(Debug)]
enum Given {
    Whole(Bytes),
    Delta(Bytes),
}

/// Connections to sources.
#[derive(Debug)]
pub struct Taker {
    reach: Reach,
    identity: Identity,
    hello: Hello,
    shutdown: Shutdown,
    sources: Mutex<Sources>,
}

/// A connected source.
#[derive(Debug)]
struct Source {
    sender: LinkSender<FetcherToHolder>,
    /// What both ends understand.
    protocol: u16,
    pending: Pending,
    reading: tokio::task::AbortHandle,
}

impl Source {
    fn has_ended(&self) -> bool {
        waiting(&self.pending).is_none()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Taker {
    /// Nothing is dialled yet. Connections end with `shutdown`.
    pub fn new(reach: Reach, identity: Identity, hello: Hello, shutdown: Shutdown) -> Self {
        Self { reach, identity, hello, shutdown, sources: Mutex::default() }
    }

    /// A chunk into its place: as what changed where the place has an older version and that is shorter; else, and where what
    /// changed was damaged, whole.
    ///
    /// # Errors
    /// A sentence: the source could not be reached, has the chunk not, or fell silent; or the bytes are not the chunk's, or cannot
    /// be written.
    pub async fn take_into(&self, place: Place, from: WorkerId, at: SocketAddr, name: ChunkName) -> Result<Arrived, String> {
        let place = Arc::new(place);
        let old = place.clone();
        let base = tokio::task::spawn_blocking(move || old.base(name)).await.map_err(|e| e.to_string())?;
        let asked = base.as_ref().map_or(FetcherToHolder::Give(name), |base| FetcherToHolder::GiveSince(base.since));
        let given = self.take(from, at, name, asked).await?;
        let (delta, base) = match (given, base) {
            (Given::Whole(bytes), _) => return put(place, name, bytes).await,
            (Given::Delta(delta), Some(base)) => (delta, base),
            (Given::Delta(_), None) => return Err("a delta that nobody asked for".to_owned()),
        };
        match put_delta(place.clone(), base, delta).await {
            Ok(arrived) => Ok(arrived),
            Err(why) => {
                tracing::warn!(target: "cohort::weights", version = name.version.0, chunk = name.chunk, %from, why, "delta_refused");
                match self.take(from, at, name, FetcherToHolder::Give(name)).await? {
                    Given::Whole(bytes) => put(place, name, bytes).await,
                    Given::Delta(_) => Err("a delta that nobody asked for".to_owned()),
                }
            }
        }
    }

    /// A source's answer, unchecked.
    async fn take(&self, from: WorkerId, at: SocketAddr, name: ChunkName, asked: FetcherToHolder) -> Answer {
        let outcome = timeout(PATIENCE, self.ask(from, at, name, asked)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("{from} at {at} did not give it within {PATIENCE:?}")));
        if outcome.is_err() {
            // The next request dials anew.
            self.sources().remove(&(from, at));
        }
        outcome
    }

    async fn ask(&self, from: WorkerId, at: SocketAddr, name: ChunkName, asked: FetcherToHolder) -> Answer {
        let lost = || format!("{from} at {at} was lost");
        let cell = self.cell(from, at);
        let source = cell.get_or_try_init(|| self.connect(from, at)).await?;
        let asked = if source.protocol < WEIGHT_DELTAS { FetcherToHolder::Give(name) } else { asked };
        let (answer, answered) = oneshot::channel();
        waiting(&source.pending).as_mut().ok_or_else(lost)?.insert(name, answer);
        source.sender.send(&asked).await.map_err(|e| e.to_string())?;
        answered.await.map_err(|_| lost())?
    }

    /// The place of a source's connection: a new one where the connection that was in it has ended.
    fn cell(&self, from: WorkerId, at: SocketAddr) -> Arc<OnceCell<Source>> {
        let mut sources = self.sources();
        let cell = sources.entry((from, at)).or_default();
        if cell.get().is_some_and(Source::has_ended) {
            *cell = Arc::default();
        }
        cell.clone()
    }

    async fn connect(&self, from: WorkerId, at: SocketAddr) -> Result<Source, String> {
        let dialer: Arc<dyn Dialer> = Arc::new(self.reach.dialer(from, at, &self.identity).map_err(|e| e.to_string())?);
        let options = LinkOptions { give_up: Some(REACH), ..LinkOptions::default() };
        let link: WorkerLink<HolderToFetcher, FetcherToHolder> =
            WorkerLink::connect(dialer, self.hello.clone(), options, self.shutdown.clone()).await.map_err(|e| e.to_string())?;
        // A host that was let go gives nothing any more.
        link.connection().verify_peer(self.hello.run, from).map_err(|e| e.to_string())?;
        let (sender, pending) = (link.sender(), Pending::new(Mutex::new(Some(HashMap::new()))));
        let protocol = link.protocol();
        let reading = tokio::spawn(read(link, pending.clone())).abort_handle();
        Ok(Source { sender, protocol, pending, reading })
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work on megabytes is not for the threads that move messages.
async fn put(place: Arc<Place>, name: ChunkName, bytes: Bytes) -> Result<Arrived, String> {
    let written = tokio::task::spawn_blocking(move || place.put(name.chunk, &bytes)).await;
    written.unwrap_or_else(|e| Err(e.to_string()))
}

async fn put_delta(place: Arc<Place>, base: Base, delta: Bytes) -> Result<Arrived, String> {
    let written = tokio::task::spawn_blocking(move || place.put_delta(base, delta)).await;
    written.unwrap_or_else(|e| Err(e.to_string()))
}

/// Hands answers to who waits for them; when the connection ends, they hear that by the end of their channel.
async fn read(link: WorkerLink<HolderToFetcher, FetcherToHolder>, pending: Pending) {
    let take = |name: &ChunkName| waiting(&pending).as_mut().and_then(|waiting| waiting.remove(name));
    while let Ok((message, ack)) = link.recv().await {
        let (name, answer) = match message {
            HolderToFetcher::Chunk(chunk) => (chunk.name, Ok(Given::Whole(chunk.bytes.0))),
            HolderToFetcher::Delta(delta) => (delta.name, Ok(Given::Delta(delta.bytes.0))),
            HolderToFetcher::Gone(gone) => (gone.name, Err(gone.why)),
        };
        if let Some(ack) = ack {
            ack.accept();
        }
        if let Some(waiting) = take(&name) {
            // Who waited may have given up.
            let _ = waiting.send(answer);
        }
    }
    *waiting(&pending) = None;
}

fn waiting(pending: &Pending) -> std::sync::MutexGuard<'_, Option<HashMap<ChunkName, oneshot::Sender<Answer>>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::doors::node_terms;
    use cohort_actors::certs::RunAuthority;
    use cohort_actors::transport::reach::ReachListener;
    use cohort_actors::{Listener, accept_worker};
    use cohort_protocol::messages::weights::Chunk;
    use cohort_protocol::version::{PROTOCOL, PROTOCOL_MIN};
    use cohort_protocol::{PolicyVersion, Role, RunId};
    use std::time::Instant;

    const RUN: RunId = RunId(7);

    fn node(index: u16) -> WorkerId {
        WorkerId { role: Role::Node, index }
    }

    /// Gives one chunk a connection, then ends it.
    async fn give_one_each(listener: ReachListener) {
        while let Ok(connection) = listener.accept().await {
            let link = accept_worker(connection, &node_terms(RUN), |_| Ok(())).await.unwrap();
            let link = link.into_link::<FetcherToHolder, HolderToFetcher>();
            let (FetcherToHolder::Give(name), _) = link.recv().await.unwrap() else { panic!() };
            link.sender().send_bulk(&HolderToFetcher::Chunk(Chunk { name, bytes: vec![7; 100].into() })).await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_connection_that_has_ended_is_not_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let authority = RunAuthority::open_or_create(dir.path(), RUN).unwrap();
        let reach = Reach::default();
        let sockets = reach.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = reach.listen(sockets, &authority.issue(node(0)).unwrap()).unwrap();
        let at = listener.local_addr();
        let holder = tokio::spawn(give_one_each(listener));
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            run: RUN,
            worker: node(1),
            pid: 1,
            incarnation: 0,
            numerics: String::new(),
        };
        let taker = Taker::new(reach, authority.issue(node(1)).unwrap(), hello, Shutdown::new());
        for chunk in 0..3 {
            let begun = Instant::now();
            let name = ChunkName { version: PolicyVersion(1), chunk };
            let given = taker.take(node(0), at, name, FetcherToHolder::Give(name)).await.unwrap();
            assert!(matches!(given, Given::Whole(bytes) if bytes[..] == [7; 100]));
            assert!(begun.elapsed() < PATIENCE / 2, "the end of the connection before was noticed: {:?}", begun.elapsed());
            let source = taker.sources().get(&(node(0), at)).cloned().unwrap();
            while !source.get().unwrap().has_ended() {
                tokio::task::yield_now().await;
            }
        }
        holder.abort();
    }
}
