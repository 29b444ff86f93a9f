//! Takes chunks from other hosts: one connection a source, many chunks under way on each.
//!
//! Invariant **T1**: every request is answered, by bytes or by why not, within `PATIENCE` of its last sign of life.
use super::manifest;
use super::store::Place;
use cohort_actors::certs::Identity;
use cohort_actors::transport::quic::{QuicDialer, QuicOptions};
use cohort_actors::{Dialer, LinkOptions, LinkSender, Shutdown, WorkerLink};
use cohort_engine::SharedRing;
use cohort_protocol::WorkerId;
use cohort_protocol::messages::handshake::Hello;
use cohort_protocol::messages::node::ChunkName;
use cohort_protocol::messages::weights::{FetcherToHolder, HolderToFetcher};
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

type Answer = Result<Vec<u8>, String>;
type Sources = HashMap<(WorkerId, SocketAddr), Arc<OnceCell<Source>>>;
type Pending = Arc<Mutex<HashMap<ChunkName, oneshot::Sender<Answer>>>>;

/// Connections to sources.
#[derive(Debug)]
pub struct Taker {
    identity: Identity,
    hello: Hello,
    shutdown: Shutdown,
    sources: Mutex<Sources>,
}

/// A connected source.
#[derive(Debug)]
struct Source {
    sender: LinkSender<FetcherToHolder>,
    pending: Pending,
    reading: tokio::task::AbortHandle,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Taker {
    /// Nothing is dialled yet. Connections end with `shutdown`.
    pub fn new(identity: Identity, hello: Hello, shutdown: Shutdown) -> Self {
        Self { identity, hello, shutdown, sources: Mutex::default() }
    }

    /// A chunk's bytes, unchecked.
    ///
    /// # Errors
    /// A sentence: the source could not be reached, has it not, or fell silent.
    pub async fn take(&self, from: WorkerId, at: SocketAddr, name: ChunkName) -> Answer {
        let outcome = timeout(PATIENCE, self.ask(from, at, name)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("{from} at {at} did not give it within {PATIENCE:?}")));
        if outcome.is_err() {
            // The next request dials anew.
            self.sources().remove(&(from, at));
        }
        outcome
    }

    /// A chunk into its place: taken, checked (W1), written.
    ///
    /// # Errors
    /// A sentence, as [`Self::take`]; or the bytes are not the chunk's, or cannot be written.
    pub async fn take_into(
        &self,
        ring: Arc<SharedRing>,
        place: Place,
        from: WorkerId,
        at: SocketAddr,
        name: ChunkName,
    ) -> Result<(), String> {
        let bytes = self.take(from, at, name).await?;
        let written = tokio::task::spawn_blocking(move || {
            if !manifest::fits(&place.manifest, name.chunk, &bytes) {
                return Err("its bytes do not have the manifest's hash".to_owned());
            }
            let (offset, _) = manifest::range(&place.manifest, name.chunk);
            ring.write_image(place.slot, offset, &bytes).map_err(|e| e.to_string())
        });
        written.await.unwrap_or_else(|e| Err(e.to_string()))
    }

    async fn ask(&self, from: WorkerId, at: SocketAddr, name: ChunkName) -> Answer {
        let cell = self.sources().entry((from, at)).or_default().clone();
        let source = cell.get_or_try_init(|| self.connect(from, at)).await?;
        let (answer, answered) = oneshot::channel();
        source.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(name, answer);
        source.sender.send(&FetcherToHolder::Give(name)).await.map_err(|e| e.to_string())?;
        answered.await.map_err(|_| format!("{from} at {at} was lost"))?
    }

    async fn connect(&self, from: WorkerId, at: SocketAddr) -> Result<Source, String> {
        let dialer: Arc<dyn Dialer> =
            Arc::new(QuicDialer::to(from, at, &self.identity, QuicOptions::default()).map_err(|e| e.to_string())?);
        let options = LinkOptions { give_up: Some(REACH), ..LinkOptions::default() };
        let link: WorkerLink<HolderToFetcher, FetcherToHolder> =
            WorkerLink::connect(dialer, self.hello.clone(), options, self.shutdown.clone()).await.map_err(|e| e.to_string())?;
        let (sender, pending) = (link.sender(), Pending::default());
        let reading = tokio::spawn(read(link, pending.clone())).abort_handle();
        Ok(Source { sender, pending, reading })
    }

    fn sources(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands answers to who waits for them; when the connection ends, they hear that by the end of their channel.
async fn read(link: WorkerLink<HolderToFetcher, FetcherToHolder>, pending: Pending) {
    let take = |name: &ChunkName| pending.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    while let Ok((message, ack)) = link.recv().await {
        let (name, answer) = match message {
            HolderToFetcher::Chunk(chunk) => (chunk.name, Ok(chunk.bytes)),
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
    pending.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
