//! Between the learner ranks of a run: the lead, which alone speaks with the coordinator, and its followers. One table for
//! both ways; who may say what, and when, is told at each message.
//!
//! A connection belongs to one membership: whatever fails on it ends it, and a rank that comes back begins anew with
//! `Holds`. So no message of an older membership can be taken for one of a newer.
use super::learner::Fault;
use super::wire_messages;
use crate::codec::Column;
use crate::{GroupPayload, PolicyVersion, StepIntent};
use bincode::{Decode, Encode};

/// A version in an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Holding {
    /// Policy version.
    pub version: PolicyVersion,
    /// Digest of its weights.
    pub digest: u64,
}

/// State that the follower is to take. Its values follow as `Values`, tensor by tensor in ascending order of their names:
/// the weights, then, where there were updates, first and second moments. Ranks that keep the optimizer's state in parts are
/// given it by `Keep`: here it has no updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct RankState {
    /// What it is.
    pub holding: Holding,
    /// Optimizer updates done.
    pub updates: u64,
}

/// A rank's part of a step.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub struct RankStep {
    /// What the whole step consumes.
    pub intent: StepIntent,
    /// Logical shards that this rank computes: the first, and one past the last.
    pub shards: (u32, u32),
    /// Groups of these shards, in the intent's order.
    pub groups: Vec<GroupPayload>,
    /// Samples of the whole step.
    pub sequences: u64,
    /// Sampled tokens of the whole step.
    pub tokens: u64,
    /// This rank's place among those that take the step, from 1 (the lead is 0).
    pub rank: u32,
    /// Ranks that take the step.
    pub world: u32,
}

/// Memory of the lead's host in which values can be exchanged.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RankMemory {
    /// Which system and process namespace it is: a follower elsewhere cannot open it.
    pub host: String,
    /// Where it is found there.
    pub path: String,
    /// What it begins with.
    pub mark: u64,
}

/// A network between the devices of the ranks, on which sums travel from the next step on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RankFabric {
    /// Which kind, such as `nccl`.
    pub kind: String,
    /// By what the ranks find each other on it, at most 1 KiB; empty: there is none any more, sums travel on the line.
    pub invitation: Vec<u8>,
    /// This rank's place on it, from 1 (the lead is 0).
    pub rank: u32,
    /// Ranks on it.
    pub world: u32,
}

/// A part of the optimizer's state, which ranks keep together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct RankPart {
    /// Which part, from 0 (the lead's).
    pub rank: u32,
    /// Of how many.
    pub world: u32,
    /// Optimizer updates done.
    pub updates: u64,
}

/// A rank could not do its part.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RankFailed {
    /// Place, value and remedy.
    pub error: String,
    /// Whether the same step would fail again.
    pub fatal: bool,
    /// What is to blame.
    pub fault: Fault,
}

wire_messages! {
    /// Between a lead and a follower.
    BetweenRanks {
        /// Both ways, each second: a counter that moves with the rank's work, and with time while it waits for another.
        1 => Beat(u64),
        /// Follower, first of all and after each `State`: what it holds.
        2 => Holds(Option<Holding>),
        /// Lead: take this state.
        3 => State(RankState),
        /// Lead, as bulk: take part in a step.
        4 => Step(RankStep),
        /// Both ways: values of a collective operation, in order; at most 256 Ki of them.
        5 => Values(Column<f32>),
        /// Follower: what it hands in where all are gathered at the lead.
        6 => Note(Vec<u8>),
        /// Both ways. At a barrier, from a follower: it stands there; from the lead: so does everyone. Of a piece of values: it is
        /// in the memory that both share. From who is given such pieces one by one: it has taken so many.
        7 => Here(u64),
        /// Follower: the step is done; what it holds now.
        8 => Stepped(Holding),
        /// Follower: the step is not done, and this rank is to blame.
        9 => Failed(RankFailed),
        /// Lead, to one that has joined: memory for its values.
        10 => Memory(RankMemory),
        /// Follower: whether it could open it, or take its place on a fabric; if not, values travel as messages.
        11 => Opened(bool),
        /// Lead, before a step, from version 5 on: the fabric of its ranks has changed.
        12 => Fabric(RankFabric),
        /// From version 6 on. Lead, with nothing: which part does the follower keep? Follower: that one, of the version that it
        /// holds; nothing: none.
        13 => Keeps(Option<RankPart>),
        /// Lead: keep this part, whose values follow where there were updates: its first moments, then its second ones. The
        /// follower answers with `Keeps`.
        14 => Keep(RankPart),
        /// Lead: hand in the part that you keep, in the same order.
        15 => HandIn(RankPart),
    } removed []
}
