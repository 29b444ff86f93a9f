//! Between the hosts that keep a ledger: the Raft protocol over its log. The keeper that asks dials; answers carry the number of
//! their question. What the fields mean is openraft's; that they are bytes of ours keeps the wire this crate's.
use super::wire_messages;
use bincode::{Decode, Encode};

wire_messages! {
    /// From the keeper that leads, or wants to.
    AskerToKeeper {
        /// First of all: who asks.
        1 => Store(KeeperStore),
        /// Bulk. Answered by `Appended`.
        2 => Append(AppendLog),
        /// Answered by `Voted`.
        3 => Vote(AskVote),
        /// Hosts that were let go, all that this keeper knows of. Not answered.
        4 => Revoked(Vec<u16>),
    } removed []
}

wire_messages! {
    /// From the keeper that is asked.
    KeeperToAsker {
        /// Answer to `Store`: who is asked.
        1 => Store(KeeperStore),
        /// Answer to `Append`.
        2 => Appended(Appended),
        /// Answer to `Vote`.
        3 => Voted(Voted),
    } removed []
}

/// A keeper's log, told from any other that ever had its number: one that was lost and begun anew has voted and does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct KeeperStore {
    /// The keeper's number.
    pub keeper: u64,
    /// Drawn when the log was made.
    pub store: u64,
}

/// Who leads, or wants to, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Leadership {
    /// Raft's term.
    pub term: u64,
    /// The keeper's number.
    pub keeper: u64,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct LogPlace {
    /// Who wrote there.
    pub leadership: Leadership,
    /// From 0.
    pub index: u64,
}

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Ballot {
    /// For whom.
    pub leadership: Leadership,
    /// Most keepers have voted so.
    pub granted: bool,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LogEntry {
    /// Where.
    pub place: LogPlace,
    /// What.
    pub body: LogBody,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum LogBody {
    /// A keeper leads from here on.
    Blank,
    /// Who keeps the ledger: sets of keepers' numbers, of each of which most must agree.
    Keepers(Vec<Vec<u64>>),
    /// A [`crate::keeping::LedgerCommand`], encoded.
    Command(Vec<u8>),
}

/// Entries for the log; none: a sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AppendLog {
    /// The question's number.
    pub id: u64,
    /// Who leads.
    pub ballot: Ballot,
    /// Place before the first of them.
    pub before: Option<LogPlace>,
    /// Up to where most keepers have the log.
    pub committed: Option<LogPlace>,
    /// In order.
    pub entries: Vec<LogEntry>,
}

/// What became of them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Appended {
    /// The question's number.
    pub id: u64,
    /// The answer.
    pub outcome: AppendOutcome,
}

/// See [`Appended`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum AppendOutcome {
    /// All are on the disk.
    Done,
    /// Those up to there are.
    Part(Option<LogPlace>),
    /// The log differs before them.
    Conflict,
    /// Somebody else has been voted for.
    Outvoted(Ballot),
    /// This keeper is out of order, and why.
    Failed(String),
}

/// A keeper wants to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct AskVote {
    /// The question's number.
    pub id: u64,
    /// Whom to vote for.
    pub ballot: Ballot,
    /// The end of its log.
    pub last: Option<LogPlace>,
}

/// Whether it may.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Voted {
    /// The question's number.
    pub id: u64,
    /// The answer.
    pub outcome: VoteOutcome,
}

/// See [`Voted`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum VoteOutcome {
    /// How this keeper votes.
    Cast {
        /// Its vote now.
        ballot: Ballot,
        /// It is for who asked.
        granted: bool,
        /// The end of its log.
        last: Option<LogPlace>,
    },
    /// This keeper is out of order, and why.
    Failed(String),
}
