//! Between a host's agent and its workers: a worker names a version and gets the slot of the host's ring that holds it, which
//! is kept until the worker hangs up.
//!
//! Over an abstract Unix socket, of the same user only. The worker writes version and head slot (8 and 4 bytes, little-endian);
//! the agent answers with 0 and the slot (4 bytes), or with 1 and a sentence; the worker closes when it has read.
use super::store::Reply;
use cohort_engine::{RingError, SharedRing, WeightRing, WeightSource};
use cohort_model::WeightSet;
use cohort_protocol::PolicyVersion;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// For the few bytes of a request.
const REQUEST: Duration = Duration::from_secs(5);
/// For a version to arrive. The worker's own waiting is longer, so that it hears why.
const ARRIVAL: Duration = Duration::from_secs(120);
/// For a worker to read its slot.
const READING: Duration = Duration::from_secs(60);

/// What workers want.
#[derive(Debug)]
pub(crate) enum Call {
    /// A version, which the head node has in this slot.
    Ask { version: PolicyVersion, at_head: u32, reply: Reply },
    /// A slot has been read.
    Released(u32),
}

/// Answers workers until it is dropped.
pub(crate) fn serve(name: &str, calls: mpsc::Sender<Call>) -> io::Result<tokio::task::JoinHandle<()>> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok(tokio::spawn(async move {
        let mut workers = tokio::task::JoinSet::new();
        loop {
            while workers.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => workers.spawn(answer(stream, calls.clone())),
                // Out of descriptors: those that are open come first.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
        }
    }))
}

async fn answer(mut stream: tokio::net::UnixStream, calls: mpsc::Sender<Call>) {
    let ours = stream.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw());
    let mut request = [0; 12];
    if !ours || !matches!(timeout(REQUEST, stream.read_exact(&mut request)).await, Ok(Ok(_))) {
        return;
    }
    let [v0, v1, v2, v3, v4, v5, v6, v7, s0, s1, s2, s3] = request;
    let version = PolicyVersion(u64::from_le_bytes([v0, v1, v2, v3, v4, v5, v6, v7]));
    let at_head = u32::from_le_bytes([s0, s1, s2, s3]);
    let (reply, answered) = oneshot::channel();
    if calls.send(Call::Ask { version, at_head, reply }).await.is_err() {
        return;
    }
    let outcome = match timeout(ARRIVAL, answered).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err("the node agent is leaving".to_owned()),
        Err(_) => Err(format!("version {version} did not arrive within {ARRIVAL:?}")),
    };
    match outcome {
        Ok(slot) => {
            let mut bytes = vec![0];
            bytes.extend_from_slice(&slot.to_le_bytes());
            if stream.write_all(&bytes).await.is_ok() {
                // It hangs up when it has read; one that does not read loses its hold.
                let _ = timeout(READING, stream.read(&mut [0])).await;
            }
            // An agent that is leaving keeps no slots.
            let _ = calls.send(Call::Released(slot)).await;
        }
        Err(why) => {
            let mut bytes = vec![1];
            bytes.extend_from_slice(why.as_bytes());
            // A worker that is gone does not wait for it.
            let _ = stream.write_all(&bytes).await;
        }
    }
}

/// The ring of a host that joined, as its workers see it: the slot that the coordinator names is the head node's.
#[derive(Debug)]
pub(crate) struct GatedRing {
    ring: SharedRing,
    gate: String,
}

impl GatedRing {
    /// The host's ring behind its agent's gate.
    pub(crate) fn new(ring: SharedRing, gate: String) -> Self {
        Self { ring, gate }
    }

    /// The slot of this host's ring, and what keeps it.
    fn ask(&self, slot: u32, version: u64) -> io::Result<(u32, UnixStream)> {
        let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&self.gate)?)?;
        stream.set_write_timeout(Some(REQUEST))?;
        stream.set_read_timeout(Some(ARRIVAL + REQUEST))?;
        let mut request = version.to_le_bytes().to_vec();
        request.extend_from_slice(&slot.to_le_bytes());
        stream.write_all(&request)?;
        let mut verdict = [0];
        stream.read_exact(&mut verdict)?;
        if verdict[0] == 0 {
            let mut slot = [0; 4];
            stream.read_exact(&mut slot)?;
            return Ok((u32::from_le_bytes(slot), stream));
        }
        let mut why = String::new();
        stream.take(4096).read_to_string(&mut why)?;
        Err(io::Error::other(why))
    }
}

impl WeightRing for GatedRing {
    fn publish_through(
        &self,
        slot: u32,
        version: u64,
        _weights: &dyn WeightSource,
        _midway: &mut dyn FnMut(),
    ) -> Result<u64, RingError> {
        let source = io::Error::new(io::ErrorKind::Unsupported, "weights are published on the learner's host");
        tracing::error!(target: "cohort::weights", slot, version, "published_on_a_joined_host");
        Err(RingError::Io { what: "cannot publish here", source })
    }

    fn fetch(&self, slot: u32, version: u64) -> Result<WeightSet, RingError> {
        let asked = self.ask(slot, version);
        let (here, hold) = asked.map_err(|source| RingError::Io { what: "this host's agent has no weights", source })?;
        let fetched = self.ring.fetch(here, version);
        drop(hold);
        fetched
    }

    fn slots(&self) -> u32 {
        self.ring.slots()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_model::Tensor;

    #[tokio::test]
    async fn a_worker_reads_the_slot_it_is_given_and_it_is_kept_meanwhile() {
        let ring = SharedRing::create(2).unwrap();
        let weights = WeightSet([("w".to_owned(), Tensor { shape: vec![2], data: vec![1.0, 2.0] })].into());
        ring.publish(1, 7, &weights).unwrap();
        let name = format!("cohort-gate-test-{}", std::process::id());
        let (calls, mut called) = mpsc::channel(4);
        let serving = serve(&name, calls).unwrap();
        let inherited = SharedRing::inherit(ring.fd()).unwrap();
        let gated = std::sync::Arc::new(GatedRing::new(inherited, name));
        let fetch = |slot, version| {
            let gated = gated.clone();
            tokio::task::spawn_blocking(move || gated.fetch(slot, version))
        };
        let fetching = fetch(0, 7);
        let Some(Call::Ask { version: PolicyVersion(7), at_head: 0, reply }) = called.recv().await else { panic!() };
        reply.send(Ok(1)).unwrap();
        assert_eq!(fetching.await.unwrap().unwrap(), weights);
        assert!(matches!(called.recv().await, Some(Call::Released(1))));
        let refused = fetch(0, 8);
        let Some(Call::Ask { reply, .. }) = called.recv().await else { panic!() };
        reply.send(Err("version 8 is gone".into())).unwrap();
        assert!(refused.await.unwrap().unwrap_err().to_string().contains("agent has no weights: version 8 is gone"));
        serving.abort();
    }
}
