//! From keeper to keeper: what openraft asks of a network, over whatever carries questions.
use super::Types;
use super::wire::{ballot, log_id, place, vote, written};
use async_trait::async_trait;
use cohort_protocol::messages::keepers::{AppendLog, AppendOutcome, AskVote, VoteOutcome};
use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, RaftNetwork, RaftNetworkFactory};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Between two tries to reach a keeper that cannot be reached.
const AGAIN: Duration = Duration::from_millis(200);

/// A question was not answered. Ask again.
#[derive(Debug, Error)]
#[error("keeper {keeper} does not answer: {why}")]
pub struct LineError {
    /// Whom.
    pub keeper: u64,
    /// Why.
    pub why: String,
}

/// Carries questions to other keepers and brings their answers. A question may arrive and its answer not.
#[async_trait]
pub trait Line: Send + Sync + 'static {
    /// Entries for the log of `to`.
    async fn append(&self, to: u64, question: AppendLog) -> Result<AppendOutcome, LineError>;
    /// A vote of `to`.
    async fn vote(&self, to: u64, question: AskVote) -> Result<VoteOutcome, LineError>;
}

/// Makes lines to each.
pub(super) struct Lines(pub(super) Arc<dyn Line>);

impl RaftNetworkFactory<Types> for Lines {
    type Network = LineTo;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> LineTo {
        LineTo { line: self.0.clone(), to: target }
    }
}

/// To one keeper.
pub(super) struct LineTo {
    line: Arc<dyn Line>,
    to: u64,
}

type Failed<E> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

impl LineTo {
    fn unreachable<E: std::error::Error>(error: &LineError) -> Failed<E> {
        RPCError::Unreachable(Unreachable::new(error))
    }

    /// The other keeper is there and out of order.
    fn out_of_order<E: std::error::Error>(&self, why: String) -> Failed<E> {
        RPCError::Unreachable(Unreachable::new(&LineError { keeper: self.to, why }))
    }
}

impl RaftNetwork<Types> for LineTo {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed<openraft::error::Infallible>> {
        let question = AppendLog {
            id: 0,
            ballot: ballot(rpc.vote),
            before: rpc.prev_log_id.map(place),
            committed: rpc.leader_commit.map(place),
            entries: rpc.entries.into_iter().map(written).collect(),
        };
        match self.line.append(self.to, question).await {
            Ok(AppendOutcome::Done) => Ok(AppendEntriesResponse::Success),
            Ok(AppendOutcome::Part(upto)) => Ok(AppendEntriesResponse::PartialSuccess(upto.map(log_id))),
            Ok(AppendOutcome::Conflict) => Ok(AppendEntriesResponse::Conflict),
            Ok(AppendOutcome::Outvoted(ballot)) => Ok(AppendEntriesResponse::HigherVote(vote(ballot))),
            Ok(AppendOutcome::Failed(why)) => Err(self.out_of_order(why)),
            Err(error) => Err(Self::unreachable(&error)),
        }
    }

    async fn install_snapshot(
        &mut self,
        _rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<InstallSnapshotError>> {
        Err(self.out_of_order("there are no snapshots".to_owned()))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed<openraft::error::Infallible>> {
        let question = AskVote { id: 0, ballot: ballot(rpc.vote), last: rpc.last_log_id.map(place) };
        match self.line.vote(self.to, question).await {
            Ok(VoteOutcome::Cast { ballot, granted, last }) => {
                Ok(VoteResponse { vote: vote(ballot), vote_granted: granted, last_log_id: last.map(log_id) })
            }
            Ok(VoteOutcome::Failed(why)) => Err(self.out_of_order(why)),
            Err(error) => Err(Self::unreachable(&error)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(AGAIN))
    }
}
