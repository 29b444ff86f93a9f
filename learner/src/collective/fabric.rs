//! Sums on a [`Fabric`] between the ranks' devices, while the lines keep order and names.
//!
//! Invariant **B4**: whoever waits on the fabric watches the lines, which notice a dead rank, and how long nothing has moved.
use super::{CollectiveError, Peer};
use cohort_engine::fabric::{Fabric, FabricError};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two signs that the lead waits.
const SIGN: Duration = Duration::from_millis(500);
/// A fabric may fail before the line to the rank whose death broke it: that long the death of a rank is waited for.
const BLAME: Duration = Duration::from_secs(4);
/// Between two looks for it.
const BLAME_LOOK: Duration = Duration::from_millis(20);

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
        let Ok(mut end) = self.end.lock() else {
            let why = "a thread panicked in the middle of an earlier sum".to_owned();
            return Err(CollectiveError::Fabric { fabric: self.kind, during, why });
        };
        let mut ended = None;
        let summed = end.all_reduce(data, &mut |moved| match watch.look(moved) {
            Ok(()) => ControlFlow::Continue(()),
            Err(why) => {
                ended = Some(why);
                ControlFlow::Break(())
            }
        });
        summed.map_err(|error| match (ended, error) {
            (Some(why), _) => why,
            (None, FabricError::Broken(why)) => watch.blame(why),
            (None, FabricError::Ended) => watch.blame("it ended by itself".to_owned()),
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

    /// B4.
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
