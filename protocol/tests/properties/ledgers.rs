//! The log that keepers of the ledger replicate, and the search for who leads.
use crate::records::text;
use cohort_protocol::messages::keepers::{
    AppendLog, AppendOutcome, Appended, AskVote, AskerToKeeper, Ballot, KeeperStore, KeeperToAsker, Leadership, LogBody,
    LogEntry, LogPlace, VoteOutcome, Voted,
};
use cohort_protocol::messages::seeking::{KeeperToNode, WhoLeads};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

pub(crate) fn ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), any::<u64>(), any::<bool>())
        .prop_map(|(term, keeper, granted)| Ballot { leadership: Leadership { term, keeper }, granted })
}

pub(crate) fn log_place() -> impl Strategy<Value = LogPlace> {
    (any::<u64>(), any::<u64>(), any::<u64>())
        .prop_map(|(term, keeper, index)| LogPlace { leadership: Leadership { term, keeper }, index })
}

pub(crate) fn log_entry() -> impl Strategy<Value = LogEntry> {
    let body = prop_oneof![
        Just(LogBody::Blank),
        vec(vec(any::<u64>(), 0..4), 0..3).prop_map(LogBody::Keepers),
        vec(any::<u8>(), 0..40).prop_map(LogBody::Command),
    ];
    (log_place(), body).prop_map(|(place, body)| LogEntry { place, body })
}

pub(crate) fn keeper_store() -> impl Strategy<Value = KeeperStore> {
    (any::<u64>(), any::<u64>()).prop_map(|(keeper, store)| KeeperStore { keeper, store })
}

pub(crate) fn asker_to_keeper() -> impl Strategy<Value = AskerToKeeper> {
    let append = (any::<u64>(), ballot(), of(log_place()), of(log_place()), vec(log_entry(), 0..4));
    prop_oneof![
        keeper_store().prop_map(AskerToKeeper::Store),
        append.prop_map(|(id, ballot, before, committed, entries)| {
            AskerToKeeper::Append(AppendLog { id, ballot, before, committed, entries })
        }),
        (any::<u64>(), ballot(), of(log_place())).prop_map(|(id, ballot, last)| AskerToKeeper::Vote(AskVote {
            id,
            ballot,
            last
        })),
        vec(any::<u16>(), 0..4).prop_map(AskerToKeeper::Revoked),
    ]
}

pub(crate) fn keeper_to_asker() -> impl Strategy<Value = KeeperToAsker> {
    let appended = prop_oneof![
        Just(AppendOutcome::Done),
        of(log_place()).prop_map(AppendOutcome::Part),
        Just(AppendOutcome::Conflict),
        ballot().prop_map(AppendOutcome::Outvoted),
        text().prop_map(AppendOutcome::Failed),
    ];
    let voted = prop_oneof![
        (ballot(), any::<bool>(), of(log_place())).prop_map(|(ballot, granted, last)| VoteOutcome::Cast {
            ballot,
            granted,
            last
        }),
        text().prop_map(VoteOutcome::Failed),
    ];
    prop_oneof![
        keeper_store().prop_map(KeeperToAsker::Store),
        (any::<u64>(), appended).prop_map(|(id, outcome)| KeeperToAsker::Appended(Appended { id, outcome })),
        (any::<u64>(), voted).prop_map(|(id, outcome)| KeeperToAsker::Voted(Voted { id, outcome })),
    ]
}

pub(crate) fn keeper_to_node() -> impl Strategy<Value = KeeperToNode> {
    let leads = (any::<u64>(), any::<u64>(), of(any::<u64>()), of(text()));
    leads.prop_map(|(id, term, keeper, listens)| KeeperToNode::Leads(WhoLeads { id, term, keeper, listens }))
}
