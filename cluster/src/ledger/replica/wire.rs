//! openraft's types as the wire's and the disk's, and back.
use super::{Command, Types};
use cohort_protocol::messages::keepers::{Ballot, Leadership, LogBody, LogEntry, LogPlace};
use openraft::{CommittedLeaderId, Entry, EntryPayload, LogId, Membership, Vote};

/// A set of keepers.
pub(super) type Members = Membership<u64, openraft::EmptyNode>;

pub(super) fn place(id: LogId<u64>) -> LogPlace {
    let leadership = Leadership { term: id.leader_id.term, keeper: id.leader_id.node_id };
    LogPlace { leadership, index: id.index }
}

pub(super) fn log_id(place: LogPlace) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(place.leadership.term, place.leadership.keeper), place.index)
}

pub(super) fn ballot(vote: Vote<u64>) -> Ballot {
    let leadership = Leadership { term: vote.leader_id.term, keeper: vote.leader_id.node_id };
    Ballot { leadership, granted: vote.committed }
}

pub(super) fn vote(ballot: Ballot) -> Vote<u64> {
    let Leadership { term, keeper } = ballot.leadership;
    if ballot.granted { Vote::new_committed(term, keeper) } else { Vote::new(term, keeper) }
}

pub(super) fn sets(members: &Members) -> Vec<Vec<u64>> {
    members.get_joint_config().iter().map(|set| set.iter().copied().collect()).collect()
}

pub(super) fn members(sets: Vec<Vec<u64>>) -> Members {
    Membership::new(sets.into_iter().map(|set| set.into_iter().collect()).collect(), None)
}

pub(super) fn written(entry: Entry<Types>) -> LogEntry {
    let body = match entry.payload {
        EntryPayload::Blank => LogBody::Blank,
        EntryPayload::Membership(members) => LogBody::Keepers(sets(&members)),
        EntryPayload::Normal(Command(bytes)) => LogBody::Command(bytes),
    };
    LogEntry { place: place(entry.log_id), body }
}

pub(super) fn read(entry: LogEntry) -> Entry<Types> {
    let payload = match entry.body {
        LogBody::Blank => EntryPayload::Blank,
        LogBody::Keepers(sets) => EntryPayload::Membership(members(sets)),
        LogBody::Command(bytes) => EntryPayload::Normal(Command(bytes)),
    };
    Entry { log_id: log_id(entry.place), payload }
}
