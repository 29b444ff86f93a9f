//! Gives chunks of this host's weights to other hosts.
use super::shelf::Shelf;
use cohort_actors::{AcceptTerms, Admitted, Connection, Listener, PeerLink, PeerSender, accept_worker};
use cohort_engine::SharedRing;
use cohort_protocol::messages::node::ChunkName;
use cohort_protocol::messages::weights::{Chunk, FetcherToHolder, Gone, HolderToFetcher};
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
    while let Ok((FetcherToHolder::Give(name), _)) = link.recv().await {
        while sending.try_join_next().is_some() {}
        let Ok(permit) = outgoing.clone().acquire_owned().await else { return };
        let (sender, ring, shelf) = (link.sender(), ring.clone(), shelf.clone());
        sending.spawn(async move {
            give(&sender, ring, shelf, name).await;
            drop(permit);
        });
    }
}

/// A host that does not take its chunk asks again, here or elsewhere.
async fn give(sender: &PeerSender<HolderToFetcher>, ring: Arc<SharedRing>, shelf: Arc<Shelf>, name: ChunkName) {
    let read = tokio::task::spawn_blocking(move || shelf.read(&ring, name)).await;
    let sent = match read.unwrap_or_else(|e| Err(e.to_string())) {
        Ok(bytes) => sender.send_bulk(&HolderToFetcher::Chunk(Chunk { name, bytes })).await,
        Err(why) => sender.send(&HolderToFetcher::Gone(Gone { name, why })).await,
    };
    if let Err(error) = sent {
        tracing::debug!(target: "cohort::weights", %error, chunk = name.chunk, "chunk_not_given");
    }
}
