//! Weights on this host: chunks that it takes from others, and versions that its workers ask for.
use super::Joined;
use crate::agent::weights::gate::Call;
use crate::agent::weights::place::Arrived;
use cohort_protocol::WorkerId;
use cohort_protocol::messages::node::{ChunkFailed, ChunkName, FetchChunk, NodeToHead};
use std::net::SocketAddr;

/// The end of a chunk's way.
pub(super) type Taken = (ChunkName, WorkerId, Result<Arrived, String>);

impl Joined<'_> {
    /// A worker of this host asks for weights, or has read them.
    pub(super) async fn called(&mut self, call: Call) {
        let Some(site) = &mut self.site else { return };
        match call {
            Call::Ask { version, at_head, reply } => {
                if let Some(wish) = site.store.ask(version, at_head, reply) {
                    self.say(NodeToHead::WantWeights(wish)).await;
                }
            }
            Call::Released(slot) => site.store.released(slot),
        }
    }

    /// Takes a chunk in a task of its own.
    pub(super) async fn fetch(&mut self, fetch: FetchChunk) {
        let FetchChunk { name, from, address } = fetch;
        let Some(site) = &self.site else { return };
        let place = match site.store.place(name) {
            Some(Some(place)) => place,
            Some(None) => return self.say(NodeToHead::Held(name)).await,
            None => {
                let failed = ChunkFailed { name, from, why: "this host is not taking that version".into() };
                return self.say(NodeToHead::ChunkFailed(failed)).await;
            }
        };
        let at = match address.as_str() {
            "" => Ok(SocketAddr::new(self.dialer.head().ip(), site.facts.weights_port)),
            given => given.parse().map_err(|_| format!("{given:?} is no address")),
        };
        let (taker, done) = (self.taker.clone(), self.taken.0.clone());
        tokio::spawn(async move {
            let result = match at {
                Ok(at) => taker.take_into(place, from, at, name).await,
                Err(why) => Err(why),
            };
            // An agent that leaves takes no more chunks.
            let _ = done.send((name, from, result)).await;
        });
    }

    /// A chunk has come, or did not.
    pub(super) async fn landed(&mut self, (name, from, result): Taken) {
        let Some(site) = &mut self.site else { return };
        match result {
            Ok(arrived) => {
                self.chunks += 1;
                site.store.landed(name, arrived);
                self.say(NodeToHead::Held(name)).await;
            }
            Err(why) => {
                tracing::debug!(target: "cohort::weights", version = name.version.0, chunk = name.chunk, %from, why, "chunk_failed");
                self.say(NodeToHead::ChunkFailed(ChunkFailed { name, from, why })).await;
            }
        }
    }
}
