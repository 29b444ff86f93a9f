//! Values of one rank on their way to all others, by way of the lead: piece by piece, some ahead of what was taken.
//!
//! ```text
//! rank 1 --values--> rank 0 --values--> rank 2, rank 3, ..
//!        <--taken---        <--taken---
//! ```
//!
//! Invariant **R1**: who gives is at most [`AHEAD`] pieces ahead of what was taken, and gives nothing before the other stands there: on
//! the way no queue fills, and no memory is written that is still read.
use super::CollectiveError;
use super::stream::{AHEAD, PIECE, Peer};
use cohort_actors::crash::{FOLLOWER_GATHER, LEAD_GATHER, crash_point};
use cohort_protocol::messages::ranks::BetweenRanks;

const GATHER: &str = "a gathering of parts";

/// This rank's side of handing on `data` from rank `from`: at the lead, `peers` are all other ranks, else the lead.
pub(super) async fn pass(peers: &[Peer], rank: usize, from: usize, data: &mut [f32]) -> Result<(), CollectiveError> {
    let gives = |at: usize| match rank {
        0 => at + 1 == from,
        _ => rank != from,
    };
    let giver = peers.iter().enumerate().find(|(at, _)| gives(*at)).map(|(_, peer)| peer);
    let takers = || peers.iter().enumerate().filter(|(at, _)| !gives(*at) && (rank == 0 || rank == from)).map(|(_, peer)| peer);
    let pieces = data.len().div_ceil(PIECE);
    if pieces == 0 {
        return Ok(());
    }
    if let Some(giver) = giver {
        taken(giver, 0).await?;
    }
    for (index, piece) in data.chunks_mut(PIECE).enumerate() {
        if let Some(giver) = giver {
            giver.recv(index, piece, GATHER).await?;
            taken(giver, index + 1).await?;
        }
        for taker in takers() {
            match index {
                0 => has_taken(taker, 0).await?,
                AHEAD.. => has_taken(taker, index + 1 - AHEAD).await?,
                _ => {}
            }
            taker.send(index, piece, GATHER).await?;
        }
        if giver.is_none() {
            crash_point(if rank == 0 { LEAD_GATHER } else { FOLLOWER_GATHER });
        }
    }
    for taker in takers() {
        for read in (pieces + 1).saturating_sub(AHEAD).max(1)..=pieces {
            has_taken(taker, read).await?;
        }
    }
    Ok(())
}

/// Says how many pieces this rank has taken.
async fn taken(giver: &Peer, pieces: usize) -> Result<(), CollectiveError> {
    giver.line.send(&BetweenRanks::Here(pieces as u64), GATHER).await
}

/// Waits until the other has taken so many.
async fn has_taken(taker: &Peer, pieces: usize) -> Result<(), CollectiveError> {
    match taker.line.recv(GATHER).await? {
        BetweenRanks::Here(taken) if taken == pieces as u64 => Ok(()),
        other => Err(taker.line.out_of_step(GATHER, &other)),
    }
}
