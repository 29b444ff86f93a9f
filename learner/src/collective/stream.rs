//! Ranks in different processes, or tasks, each connected with rank 0 by a [`Line`]: any transport will do. On one host the
//! pieces of a sum lie in memory that both ends share ([`Exchange`]), and the line says that they are there.
//!
//! ```text
//! rank 1 --values--> rank 0: values in the tree --sum--> rank 1, rank 2, ..        piece by piece, some pieces ahead
//! rank 2 --values-->
//! ```
//!
//! Rank 0 takes in and gives out (R - 1) x the gradient; that is what a star costs, and why a group of many ranks wants a
//! fabric of its own.
//!
//! Where the ranks have a [`Fabric`](super::Fabric), sums travel on that, and nothing else does.
//!
//! Invariants
//! - **M1** a follower is at most [`AHEAD`] pieces ahead of what it has got back, so that no queue on the way fills.
//! - **M2** an error at rank 0 closes every line with its reason: all ranks abandon the step for the same one.
use super::fabric::SharedFabric;
use super::line::Line;
use super::memory::Exchange;
use super::passing::pass;
use super::{Collective, CollectiveError};
use cohort_actors::crash::{FOLLOWER_REDUCE, LEAD_REDUCE, crash_point};
use cohort_protocol::codec::Column;
use cohort_protocol::messages::ranks::BetweenRanks;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Values of a message: 1 MiB.
pub(super) const PIECE: usize = 1 << 18;
/// Pieces that a follower sends before it has their sums.
pub(super) const AHEAD: usize = 8;

const SUM: &str = "the sum over ranks";
const COPY: &str = "a broadcast";
const GATHER: &str = "a gathering";
const BARRIER: &str = "a barrier";

/// Another rank as this one reaches it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// For all messages.
    pub line: Arc<Line>,
    /// For pieces of a sum; `None`: the line.
    pub memory: Option<Arc<Exchange>>,
}

impl Peer {
    /// Piece `index` of an operation.
    pub(super) async fn send(&self, index: usize, values: &[f32], during: &'static str) -> Result<(), CollectiveError> {
        let Some(memory) = &self.memory else { return self.line.send(&message(values), during).await };
        memory.put(index, values).map_err(|e| self.broken(&e, during))?;
        self.line.send(&BetweenRanks::Here(index as u64), during).await
    }

    /// Its piece `index` of an operation.
    pub(super) async fn recv(&self, index: usize, values: &mut [f32], during: &'static str) -> Result<(), CollectiveError> {
        let Some(memory) = &self.memory else { return self.values(during, values).await };
        match self.line.recv(during).await? {
            BetweenRanks::Here(there) if there == index as u64 => memory.take(index, values).map_err(|e| self.broken(&e, during)),
            other => Err(self.line.out_of_step(during, &other)),
        }
    }

    async fn values(&self, during: &'static str, into: &mut [f32]) -> Result<(), CollectiveError> {
        match self.line.recv(during).await? {
            BetweenRanks::Values(Column(values)) if values.len() == into.len() => {
                into.copy_from_slice(&values);
                Ok(())
            }
            other => Err(self.line.out_of_step(during, &other)),
        }
    }

    fn broken(&self, error: &std::io::Error, during: &'static str) -> CollectiveError {
        let why = format!("the memory shared with it: {error}");
        CollectiveError::Lost { rank: self.line.peer().to_owned(), during, why }
    }
}

/// One rank of such a group.
pub struct Stream {
    rank: usize,
    world: usize,
    /// At rank 0 each other rank, in their order; else rank 0.
    peers: Vec<Peer>,
    /// For sums; `None`: the peers.
    fabric: Option<SharedFabric>,
    /// Where the lines live.
    runtime: Handle,
    barriers: u64,
    ended: Option<CollectiveError>,
}

impl Stream {
    /// Rank 0 of a group with these followers. Call it within the tokio runtime of the lines.
    #[must_use]
    pub fn lead(peers: Vec<Peer>) -> Self {
        Self { rank: 0, world: peers.len() + 1, peers, fabric: None, runtime: Handle::current(), barriers: 0, ended: None }
    }

    /// Another rank. Call it within the tokio runtime of the line.
    #[must_use]
    pub fn follower(lead: Peer, rank: usize, world: usize) -> Self {
        Self { rank, world, peers: vec![lead], fabric: None, runtime: Handle::current(), barriers: 0, ended: None }
    }

    /// The same group, whose sums travel on a fabric.
    #[must_use]
    pub fn on(self, fabric: Option<SharedFabric>) -> Self {
        Self { fabric, ..self }
    }

    /// K3 and M2 around a call.
    fn call<T>(&mut self, run: impl FnOnce(&Self) -> Result<T, CollectiveError>) -> Result<T, CollectiveError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let result = run(self);
        if let Err(error) = &result {
            self.abort(&error.to_string());
            self.ended = Some(error.clone());
        }
        result
    }

    /// Rank 0's side of a sum.
    async fn sum(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        let mut others = vec![vec![0.0; PIECE.min(data.len())]; self.peers.len()];
        for (index, piece) in data.chunks_mut(PIECE).enumerate() {
            for (peer, values) in self.peers.iter().zip(&mut others) {
                peer.recv(index, &mut values[..piece.len()], SUM).await?;
            }
            let mut parts: Vec<&mut [f32]> = Vec::with_capacity(self.world);
            parts.push(&mut *piece);
            parts.extend(others.iter_mut().map(Vec::as_mut_slice));
            cohort_kernels::tree::sum(&mut parts);
            for peer in &self.peers {
                peer.send(index, piece, SUM).await?;
            }
            crash_point(LEAD_REDUCE);
        }
        Ok(())
    }

    /// A follower's side of a sum.
    async fn contribute(&self, lead: &Peer, data: &mut [f32]) -> Result<(), CollectiveError> {
        let pieces = data.len().div_ceil(PIECE);
        let (mut sent, mut got) = (0, 0);
        while got < pieces {
            while sent < pieces && sent < got + AHEAD {
                lead.send(sent, &data[range(sent, data.len())], SUM).await?;
                sent += 1;
            }
            crash_point(FOLLOWER_REDUCE);
            let piece = range(got, data.len());
            lead.recv(got, &mut data[piece], SUM).await?;
            got += 1;
        }
        Ok(())
    }

    async fn copy(&self, data: &mut [f32]) -> Result<(), CollectiveError> {
        for piece in data.chunks_mut(PIECE) {
            match &self.peers[..] {
                [lead] if self.rank > 0 => lead.values(COPY, piece).await?,
                peers => {
                    let message = message(piece);
                    for peer in peers {
                        peer.line.send(&message, COPY).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn collect(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        if let ([Peer { line, .. }], true) = (&self.peers[..], self.rank > 0) {
            line.send(&BetweenRanks::Note(own), GATHER).await?;
            return Ok(Vec::new());
        }
        let mut all = vec![own];
        for Peer { line, .. } in &self.peers {
            match line.recv(GATHER).await? {
                BetweenRanks::Note(note) => all.push(note),
                other => return Err(line.out_of_step(GATHER, &other)),
            }
        }
        Ok(all)
    }

    async fn meet(&self) -> Result<(), CollectiveError> {
        let here = BetweenRanks::Here(self.barriers);
        let arrive = async |line: &Line| match line.recv(BARRIER).await? {
            message if message == here => Ok(()),
            other => Err(line.out_of_step(BARRIER, &other)),
        };
        if let ([Peer { line, .. }], true) = (&self.peers[..], self.rank > 0) {
            line.send(&here, BARRIER).await?;
            return arrive(line).await;
        }
        for Peer { line, .. } in &self.peers {
            arrive(line).await?;
        }
        for Peer { line, .. } in &self.peers {
            line.send(&here, BARRIER).await?;
        }
        Ok(())
    }
}

/// Where piece `index` of so many values lies.
fn range(index: usize, len: usize) -> Range<usize> {
    index * PIECE..((index + 1) * PIECE).min(len)
}

fn message(piece: &[f32]) -> BetweenRanks {
    BetweenRanks::Values(Column(piece.to_vec()))
}

impl Collective for Stream {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn check(&self) -> Result<(), CollectiveError> {
        match &self.ended {
            Some(error) => Err(error.clone()),
            None => self.peers.iter().try_for_each(|peer| peer.line.check("the step")),
        }
    }

    fn all_reduce(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.call(|group| match (&group.fabric, &group.peers[..]) {
            (Some(fabric), peers) => fabric.all_reduce(data, peers, group.rank == 0, SUM),
            (None, [lead]) if group.rank > 0 => group.runtime.block_on(group.contribute(lead, data)),
            (None, _) => group.runtime.block_on(group.sum(data)),
        })
    }

    fn broadcast(&mut self, data: &mut [f32]) -> Result<(), CollectiveError> {
        self.call(|group| group.runtime.block_on(group.copy(data)))
    }

    fn all_gather(&mut self, data: &mut [f32], parts: &[Range<usize>]) -> Result<(), CollectiveError> {
        self.call(|group| {
            let Some(fabric) = &group.fabric else {
                let passed = async {
                    for (from, part) in parts.iter().enumerate() {
                        pass(&group.peers, group.rank, from, &mut data[part.clone()]).await?;
                    }
                    Ok(())
                };
                return group.runtime.block_on(passed);
            };
            // Adding -0 changes no bit, not even the sign of a zero.
            let own = parts.get(group.rank).cloned().unwrap_or(0..0);
            data[..own.start].fill(-0.0);
            data[own.end..].fill(-0.0);
            fabric.all_reduce(data, &group.peers, group.rank == 0, "a gathering of parts")
        })
    }

    fn gather(&mut self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.call(|group| group.runtime.block_on(group.collect(own)))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.barriers += 1;
        self.call(|group| group.runtime.block_on(group.meet()))
    }

    fn abort(&mut self, why: &str) {
        // A follower's own failure is told first, by whoever knows it; the lead ends the line then.
        if self.rank == 0 {
            self.peers.iter().for_each(|peer| peer.line.close(why));
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("rank", &self.rank).field("peers", &self.peers).finish_non_exhaustive()
    }
}
