//! One keeper: its log, its ledger, and its part in choosing who leads.
use super::line::{Line, Lines};
use super::log::LogStore;
use super::machine::{Closing, Machine};
use super::wire::{ballot, log_id, place, read, vote};
use super::{Command, Types};
use crate::ledger::error::LedgerError;
use crate::ledger::place::RunPaths;
use cohort_protocol::keeping::{LedgerAnswer, LedgerCommand};
use cohort_protocol::messages::keepers::{AppendLog, AppendOutcome, AskVote, KeeperStore, VoteOutcome};
use cohort_protocol::{CodecError, Epoch, codec};
use openraft::error::{ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use openraft::{Config, Raft, SnapshotPolicy};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;

/// What a keeper is started with.
#[derive(Debug, Clone)]
pub struct KeeperSetting {
    /// Its number, below `keepers`.
    pub number: u64,
    /// How many there are.
    pub keepers: u64,
    /// The run; its ledger exists.
    pub paths: RunPaths,
    /// How patient it is.
    pub timing: Timing,
}

/// When a keeper that is not heard of counts as gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two signs of life of the keeper that leads.
    pub beat: Duration,
    /// Silence after which it may be replaced; the others begin to ask for votes after one to two times as long.
    pub silence: Duration,
}

impl Timing {
    /// A keeper that leads and is answered by too few for so long leads no more, whatever it thinks: others have replaced it by then,
    /// or do so soon.
    fn unanswered(self) -> Duration {
        self.silence * 3
    }
}

impl Default for Timing {
    /// A sign of life every half second, a successor after 3 to 5 s.
    fn default() -> Self {
        Self { beat: Duration::from_millis(500), silence: Duration::from_millis(1500) }
    }
}

/// A command was not answered.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// This keeper does not lead. Whether the command is written is not known: it may be, where it led a moment ago.
    #[error("this keeper does not lead{}", leader.map_or_else(String::new, |leader| format!("; keeper {leader} does")))]
    NotLeading {
        /// Who does, where that is known.
        leader: Option<u64>,
    },
    /// Most keepers could not be reached in time. The command may still be written.
    #[error("no majority of the keepers answered within {} s", after.as_secs())]
    NoMajority {
        /// How long.
        after: Duration,
    },
    /// This keeper has stopped: its disk, or its program.
    #[error("this keeper has stopped: {0}")]
    Stopped(String),
    /// The command is too large.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Its log or its ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Where a keeper stands, as it sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Raft's term.
    pub term: u64,
    /// Who leads, where that is known.
    pub leader: Option<u64>,
    /// It is this one, and most of the others answer it.
    pub leads: bool,
    /// Entries of the log that its ledger has.
    pub applied: u64,
    /// It works.
    pub sound: bool,
}

/// A running keeper; clones are the same one.
#[derive(Clone)]
pub struct Keeper {
    raft: Raft<Types>,
    number: u64,
    unanswered: Duration,
    log: LogStore,
    machine: Machine,
    closed: watch::Receiver<Option<Closing>>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Keeper {
    /// Opens log and ledger and takes part. Keeper 0 of a log that is new seats all of them.
    ///
    /// # Errors
    /// [`KeeperError::Ledger`], [`KeeperError::Stopped`].
    pub async fn start(setting: KeeperSetting, line: Arc<dyn Line>) -> Result<Self, KeeperError> {
        let KeeperSetting { number, keepers, paths, timing } = setting;
        let path = paths.keeper_log();
        let opened = tokio::task::spawn_blocking(move || {
            let log = LogStore::open(&path, number)?;
            Machine::open(&paths).map(|(machine, closed)| (log, machine, closed))
        });
        let (log, machine, closed) = opened.await.map_err(stopped)??;
        let config = Arc::new(config(timing).validate().map_err(stopped)?);
        let raft = Raft::new(number, config, Lines(line), log.clone(), machine.clone()).await.map_err(stopped)?;
        if number == 0 && !raft.is_initialized().await.map_err(stopped)? {
            let all: BTreeSet<u64> = (0..keepers).collect();
            raft.initialize(all).await.map_err(stopped)?;
        }
        Ok(Self { raft, number, unanswered: timing.unanswered(), log, machine, closed })
    }

    /// Writes a command and says what came of it (K1). Only the keeper that leads can.
    ///
    /// # Errors
    /// [`KeeperError`]; after any of them the command may or may not be written.
    pub async fn write(&self, command: &LedgerCommand, within: Duration) -> Result<LedgerAnswer, KeeperError> {
        let command = Command(codec::encode(command)?);
        match tokio::time::timeout(within, self.raft.client_write(command)).await {
            Err(_) => Err(KeeperError::NoMajority { after: within }),
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(KeeperError::NotLeading { leader: to.leader_id })
            }
            Ok(Err(error)) => Err(stopped(error)),
        }
    }

    /// Entries from the keeper that leads.
    pub async fn append(&self, question: AppendLog) -> AppendOutcome {
        let rpc = AppendEntriesRequest {
            vote: vote(question.ballot),
            prev_log_id: question.before.map(log_id),
            entries: question.entries.into_iter().map(read).collect(),
            leader_commit: question.committed.map(log_id),
        };
        match self.raft.append_entries(rpc).await {
            Ok(AppendEntriesResponse::Success) => AppendOutcome::Done,
            Ok(AppendEntriesResponse::PartialSuccess(upto)) => AppendOutcome::Part(upto.map(place)),
            Ok(AppendEntriesResponse::Conflict) => AppendOutcome::Conflict,
            Ok(AppendEntriesResponse::HigherVote(cast)) => AppendOutcome::Outvoted(ballot(cast)),
            Err(error) => AppendOutcome::Failed(error.to_string()),
        }
    }

    /// A keeper asks for a vote.
    pub async fn vote(&self, question: AskVote) -> VoteOutcome {
        let rpc = VoteRequest::new(vote(question.ballot), question.last.map(log_id));
        match self.raft.vote(rpc).await {
            Ok(cast) => {
                VoteOutcome::Cast { ballot: ballot(cast.vote), granted: cast.vote_granted, last: cast.last_log_id.map(place) }
            }
            Err(error) => VoteOutcome::Failed(error.to_string()),
        }
    }

    /// Where it stands now.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.stands(&self.raft.metrics().borrow())
    }

    /// Waits until it stands as `wanted`; `false`: it has stopped before.
    pub async fn until(&self, wanted: impl Fn(Standing) -> bool + Send + Sync) -> bool {
        let mut metrics = self.raft.metrics();
        let waited = metrics.wait_for(|now| wanted(self.stands(now)));
        waited.await.is_ok()
    }

    fn stands(&self, metrics: &openraft::RaftMetrics<u64, openraft::EmptyNode>) -> Standing {
        let sound = metrics.running_state.is_ok();
        let cut_off = metrics.millis_since_quorum_ack.is_some_and(|ms| Duration::from_millis(ms) > self.unanswered);
        let leader = metrics.current_leader.filter(|leader| *leader != self.number || !cut_off);
        let leads = sound && metrics.state.is_leader() && leader == Some(self.number);
        let applied = metrics.last_applied.map_or(0, |last| last.index + 1);
        Standing { term: metrics.current_term, leader, leads, applied, sound }
    }

    /// How the run ended for this launch, once it has and this keeper has heard it.
    #[must_use]
    pub fn closed(&self) -> watch::Receiver<Option<Closing>> {
        self.closed.clone()
    }

    /// Waits until every keeper has what this one, which leads, has written so far. `false`: it leads no more.
    pub async fn until_all_have_it(&self) -> bool {
        let mut metrics = self.raft.metrics();
        let Some(last) = metrics.borrow().last_log_index else { return true };
        let all = metrics.wait_for(|now| {
            let replicated = now.replication.as_ref();
            replicated.is_none_or(|at| at.values().all(|upto| upto.is_some_and(|upto| upto.index >= last)))
        });
        all.await.is_ok_and(|now| now.replication.is_some())
    }

    /// The newest epoch that this keeper's ledger knows of.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn epoch(&self) -> Result<Epoch, LedgerError> {
        self.machine.epoch()
    }

    /// Its log, for other keepers to know it by.
    #[must_use]
    pub fn own_store(&self) -> KeeperStore {
        self.log.own()
    }

    /// Whether `peer` has the log that it always had; who is met for the first time is remembered.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn knows(&self, peer: KeeperStore) -> Result<bool, LedgerError> {
        self.log.knows(peer).await
    }

    /// Takes part no more; when it returns, log and ledger are left as they are.
    pub async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(target: "cohort::keeper", %error, "keeper_died");
        }
        // openraft does not wait for what applies the log.
        self.machine.stop();
    }
}

fn stopped(error: impl std::fmt::Display) -> KeeperError {
    KeeperError::Stopped(error.to_string())
}

fn config(timing: Timing) -> Config {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: "ledger".into(),
        heartbeat_interval: ms(timing.beat),
        election_timeout_min: ms(timing.silence),
        election_timeout_max: ms(timing.silence) * 5 / 3,
        snapshot_policy: SnapshotPolicy::Never,
        // Never a snapshot instead of the log (K5).
        replication_lag_threshold: u64::MAX,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..Config::default()
    }
}
