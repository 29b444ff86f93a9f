//! Gives chunks of this host's weights to other hosts.
use super::shelf::Shelf;
use cohort_actors::{AcceptTerms, Admitted, Connection, Listener, PeerLink, PeerSender, accept_worker};
use cohort_engine::SharedRing;
use cohort_protocol::codec::Blob;
use cohort_protocol::messages::weights::{Chunk, ChunkDelta, FetcherToHolder, Gone, HolderToFetcher};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Chunks on their way out at once, all hosts together: what is read and not yet sent.
const OUTGOING: usize = 32;

/// Serves hosts, each in a task of its own, until it is aborted or the listener ends.
pub async fn serve(listener: Arc<dyn Listener>, terms: AcceptTerms, ring: Arc<SharedRing>, shelf: Arc<Shelf>) {
    let (terms, outgoing) = (Arc::new(terms), Arc::new(Semaphore::new(OUTGOING)));
    let mut sessions = JoinSet::new();
    while let Ok(connection) = listener.accept().await {
        while sessions.try_join_next().is_some() {}
        sessions.spawn(session(connection, terms.clone(), ring.clone(), shelf.clone(), outgoing.clone()));
    }
}

async fn session(
    connection: Arc<dyn Connection>,
    terms: Arc<AcceptTerms>,
    ring: Arc<SharedRing>,
    shelf: Arc<Shelf>,
    outgoing: Arc<Semaphore>,
) {
    let admitted: Admitted = match accept_worker(connection, &terms, |_| Ok(())).await {
        Ok(admitted) => admitted,
        Err(error) => return tracing::warn!(target: "cohort::weights", %error, "not_welcomed"),
    };
    let link: PeerLink<FetcherToHolder, HolderToFetcher> = admitted.into_link();
    let mut sending = JoinSet::new();
    while let Ok((asked, _)) = link.recv().await {
        while sending.try_join_next().is_some() {}
        let Ok(permit) = outgoing.clone().acquire_owned().await else { return };
        let (sender, ring, shelf) = (link.sender(), ring.clone(), shelf.clone());
        sending.spawn(async move {
            give(&sender, ring, shelf, asked).await;
            drop(permit);
        });
    }
}

/// A host that does not take its chunk asks again, here or elsewhere.
async fn give(sender: &PeerSender<HolderToFetcher>, ring: Arc<SharedRing>, shelf: Arc<Shelf>, asked: FetcherToHolder) {
    let answer = match tokio::task::spawn_blocking(move || answer(&ring, &shelf, &asked)).await {
        Ok(answer) => answer,
        // The host's patience is the end of it.
        Err(error) => return tracing::error!(target: "cohort::weights", %error, "chunk_not_read"),
    };
    let sent = match &answer {
        HolderToFetcher::Chunk(_) | HolderToFetcher::Delta(_) => sender.send_bulk(&answer).await,
        HolderToFetcher::Gone(_) => sender.send(&answer).await,
    };
    if let Err(error) = sent {
        tracing::debug!(target: "cohort::weights", %error, "chunk_not_given");
    }
}

/// As what changed where that is asked for and shorter; else whole.
fn answer(ring: &SharedRing, shelf: &Shelf, asked: &FetcherToHolder) -> HolderToFetcher {
    let name = match asked {
        FetcherToHolder::Give(name) => *name,
        FetcherToHolder::GiveSince(since) => {
            if let Some(delta) = shelf.since(ring, since) {
                let delta = ChunkDelta { name: since.name, base: since.base, bytes: Blob(delta) };
                return HolderToFetcher::Delta(delta);
            }
            since.name
        }
    };
    match shelf.read(ring, name) {
        Ok(bytes) => HolderToFetcher::Chunk(Chunk { name, bytes: bytes.into() }),
        Err(why) => HolderToFetcher::Gone(Gone { name, why }),
    }
}
