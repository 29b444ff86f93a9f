//! A network between the devices of a group's ranks, on which sums travel while the lines keep order and names.
//!
//! Invariants
//! - **B1** a call on it ends: it looks up ([`Keep`]) at least every 10 ms, and what it then hears ends it. What looks up
//!   watches the lines, which notice a dead rank, and how long nothing has moved.
//! - **B2** after an error it is of no more use; another one is made, in the same process.
//! - **B3** a sum has the bits of the tree ([`cohort_kernels::tree`]), as on the lines: which of them carried it is no part of a
//!   run's numerics.
use super::{CollectiveError, Peer};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two signs that the lead waits.
const SIGN: Duration = Duration::from_millis(500);
/// A fabric may fail before the line to the rank whose death broke it: that long the death of a rank is waited for.
const BLAME: Duration = Duration::from_secs(4);
/// Between two looks for it.
const BLAME_LOOK: Duration = Duration::from_millis(20);

/// What a call does between its waits, told whether anything has moved since the last time; its error ends the call.
pub type Keep<'a> = dyn FnMut(bool) -> Result<(), CollectiveError> + 'a;

/// One rank's end of a fabric.
pub trait Fabric: Send + fmt::Debug {
    /// Replaces `data`, equally long on every rank, by the sum of all ranks' in the tree. The first call connects the ranks,
    /// and waits until all of them have made it.
    ///
    /// # Errors
    /// [`FabricError`]; `data` then holds anything.
    fn all_reduce(&mut self, data: &mut [f32], keep: &mut Keep<'_>) -> Result<(), FabricError>;
}

/// Makes fabrics of one kind.
pub trait Fabrics: Send + Sync + fmt::Debug {
    /// Its name, by which another process knows whether it has the same.
    fn kind(&self) -> &'static str;
    /// By what the ranks of a new group find each other.
    ///
    /// # Errors
    /// Why there can be none.
    fn invite(&self) -> Result<Vec<u8>, String>;
    /// Takes a place in the group of an invitation, without waiting for the others.
    ///
    /// # Errors
    /// Why this rank cannot.
    fn join(&self, invitation: &[u8], rank: usize, world: usize) -> Result<Box<dyn Fabric>, String>;
}

/// Why a call on a fabric ended without its result.
#[derive(Debug)]
pub enum FabricError {
    /// What looks up said so.
    Ended(CollectiveError),
    /// It failed.
    Broken(String),
}

/// An end of a fabric that outlasts one step.
#[derive(Debug, Clone)]
pub struct SharedFabric {
    kind: &'static str,
    end: Arc<Mutex<Box<dyn Fabric>>>,
}

impl SharedFabric {
    /// Of a fabric of this kind.
    #[must_use]
    pub fn new(kind: &'static str, fabric: Box<dyn Fabric>) -> Self {
        Self { kind, end: Arc::new(Mutex::new(fabric)) }
    }

    /// A sum over the ranks that `peers` lead to; at the lead all others, else the lead.
    pub(super) fn all_reduce(
        &self,
        data: &mut [f32],
        peers: &[Peer],
        leads: bool,
        during: &'static str,
    ) -> Result<(), CollectiveError> {
        let mut watch = Watch::new(self.kind, peers, leads, during);
        // A fabric that a panicking thread left is broken, and says so.
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.all_reduce(data, &mut |moved| watch.look(moved)).map_err(|error| match error {
            FabricError::Ended(why) => why,
            FabricError::Broken(why) => watch.blame(why),
        })
    }
}

/// The lines while a fabric works.
struct Watch<'a> {
    kind: &'static str,
    peers: &'a [Peer],
    leads: bool,
    during: &'static str,
    /// When something moved last: here, or, at a follower, at the lead, which gives up on whoever does not come.
    moved: Instant,
    lead: Option<u64>,
    signed: Instant,
}

impl<'a> Watch<'a> {
    fn new(kind: &'static str, peers: &'a [Peer], leads: bool, during: &'static str) -> Self {
        let now = Instant::now();
        Self { kind, peers, leads, during, moved: now, lead: None, signed: now }
    }

    /// B1.
    fn look(&mut self, moved: bool) -> Result<(), CollectiveError> {
        let now = Instant::now();
        self.peers.iter().try_for_each(|peer| peer.line.check(self.during))?;
        let lead = self.peers.first().filter(|_| !self.leads).map(|peer| peer.line.progress());
        if moved || lead != self.lead {
            (self.moved, self.lead) = (now, lead);
        }
        if now.duration_since(self.signed) >= SIGN {
            self.signed = now;
            self.peers.iter().for_each(|peer| peer.line.sign());
        }
        match self.peers.first().map(|peer| peer.line.patience()) {
            Some(after) if now.duration_since(self.moved) >= after => {
                Err(CollectiveError::Stuck { rank: self.kind.to_owned(), during: self.during, after })
            }
            _ => Ok(()),
        }
    }

    /// The rank whose death broke the fabric, or the fabric.
    fn blame(&self, why: String) -> CollectiveError {
        let begun = Instant::now();
        while begun.elapsed() < BLAME {
            if let Err(lost) = self.peers.iter().try_for_each(|peer| peer.line.check(self.during)) {
                return lost;
            }
            std::thread::sleep(BLAME_LOOK);
        }
        CollectiveError::Fabric { fabric: self.kind, during: self.during, why }
    }
}
