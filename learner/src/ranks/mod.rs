//! Several learner ranks as one learner: the *lead* (`learner-0`) speaks with the coordinator as a lone learner does, its
//! *followers* (`learner-1`, ..) take a share of its steps.
//!
//! ```text
//! coordinator -- Load, Step, Publish, Checkpoint --> lead -- State, Step, sums --> followers
//!      |                                              ^                               |
//!      +-- Meet: where the lead is -------------------|-------------------------------+
//! ```
//!
//! Invariants
//! - **F1** followers hold nothing that the lead does not, but, where the optimizer's state is kept in parts, theirs of it:
//!   whoever comes with another version or digest is given the lead's state before it takes part.
//! - **F2** a step that loses a rank is abandoned by all and taken again from its intent with the ranks that then stand,
//!   down to the lead alone: the bits do not depend on how many they are ([`crate::shards`]). A part of the optimizer's state that
//!   nobody keeps any more is as the lead's own loss: it says that it holds nothing, is given a checkpoint, and replays.
//! - **F3** after a step every rank's digest is compared with the lead's; a difference stops the run.
//! - **F4** a rank of an older membership has no voice: each membership has connections of its own, and a step is one
//!   membership's.
//!
//! Files: `team` the lead's side, `parts` who keeps which part of the optimizer's state, `weave` the fabric between its ranks' devices, `trial` whether it is tried, `follower` a follower's side.
mod follower;
mod parts;
mod team;
mod trial;
mod weave;

pub(crate) use follower::run as run_follower;
pub(crate) use parts::Moments;
pub use team::Team;
pub(crate) use team::{TeamArgs, TeamError};

use cohort_actors::transport::{Dialer, Listener};
use cohort_engine::fabric::Fabrics;
use cohort_engine::{Backend, Partition};
use cohort_protocol::messages::ranks::RankPart;
use std::fmt::Debug;
use std::sync::Arc;

/// How ranks find each other.
pub trait Rendezvous: Send + Sync + Debug {
    /// The lead's side: a listener, and the address that a follower's [`Rendezvous::dialer`] takes.
    fn listen(&self) -> Result<(Arc<dyn Listener>, String), String>;
    /// A follower's side.
    fn dialer(&self, address: &str) -> Result<Arc<dyn Dialer>, String>;
}

/// The ranks of a learner.
#[derive(Debug, Clone)]
pub struct Ranks {
    /// How many there are, the lead included.
    pub count: u16,
    /// How they find each other.
    pub rendezvous: Arc<dyn Rendezvous>,
    /// The network between their devices, where they have one.
    pub fabrics: Option<Arc<dyn Fabrics>>,
}

/// The part of the optimizer's state in an engine; `None` where it has the whole.
fn part_of(engine: &mut dyn Backend) -> Option<RankPart> {
    let part = engine.partition();
    (part != Partition::WHOLE).then(|| named(part, engine.updates()))
}

/// As messages name it. A configuration keeps ranks far below 2^32.
fn named(part: Partition, updates: u64) -> RankPart {
    let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    RankPart { rank: narrow(part.rank()), world: narrow(part.of()), updates }
}
