//! Keepers in one process: a line between each two, which can be cut in one direction or both.
use super::super::keeper::{Keeper, KeeperSetting, Timing};
use super::super::line::{Line, LineError};
use crate::ledger::place::RunPaths;
use crate::ledger::store::Ledger;
use crate::ledger::tests::meta;
use async_trait::async_trait;
use cohort_protocol::messages::keepers::{AppendLog, AppendOutcome, AskVote, VoteOutcome};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// Three keepers, and what lies between them.
pub(super) struct Net {
    dir: TempDir,
    up: Mutex<BTreeMap<u64, Keeper>>,
    /// (from, to) of lines that carry nothing.
    cut: Mutex<BTreeSet<(u64, u64)>>,
}

pub(super) const KEEPERS: u64 = 3;

impl Net {
    pub(super) async fn new() -> Arc<Self> {
        let net = Arc::new(Self { dir: tempfile::tempdir().unwrap(), up: Mutex::default(), cut: Mutex::default() });
        for number in 0..KEEPERS {
            drop(Ledger::create(&RunPaths::new(net.run_dir(number)), &meta()).unwrap());
        }
        for number in 0..KEEPERS {
            net.rise(number).await;
        }
        net
    }

    pub(super) fn run_dir(&self, number: u64) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    pub(super) fn up(&self) -> Vec<Keeper> {
        self.up.lock().unwrap().values().cloned().collect()
    }

    pub(super) fn keeper(&self, number: u64) -> Option<Keeper> {
        self.up.lock().unwrap().get(&number).cloned()
    }

    pub(super) async fn rise(self: &Arc<Self>, number: u64) -> Keeper {
        let setting =
            KeeperSetting { number, keepers: KEEPERS, paths: RunPaths::new(self.run_dir(number)), timing: Timing::default() };
        let keeper = Keeper::start(setting, Arc::new(From { net: self.clone(), number })).await.unwrap();
        self.up.lock().unwrap().insert(number, keeper.clone());
        keeper
    }

    /// It falls; a delivery that was on its way into a segment stays there, torn.
    pub(super) async fn fall(&self, number: u64, torn: usize) {
        let Some(keeper) = self.up.lock().unwrap().remove(&number) else { return };
        keeper.stop().await;
        let segment = self.run_dir(number).join("segments/000001.seg");
        if let Ok(mut file) = OpenOptions::new().append(true).open(segment) {
            file.write_all(&vec![7; torn]).unwrap();
        }
    }

    pub(super) fn cut(&self, from: u64, to: u64) {
        self.cut.lock().unwrap().insert((from, to));
    }

    /// Cut off from all others, in both directions.
    pub(super) fn isolate(&self, one: u64) {
        (0..KEEPERS).filter(|to| *to != one).for_each(|to| {
            self.cut(one, to);
            self.cut(to, one);
        });
    }

    pub(super) fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    fn reached(&self, from: u64, to: u64) -> Result<Keeper, LineError> {
        let carries = !self.cut.lock().unwrap().contains(&(from, to));
        self.keeper(to).filter(|_| carries).ok_or_else(|| LineError { keeper: to, why: "the line is cut".into() })
    }
}

/// The lines of one keeper.
struct From {
    net: Arc<Net>,
    number: u64,
}

#[async_trait]
impl Line for From {
    async fn append(&self, to: u64, question: AppendLog) -> Result<AppendOutcome, LineError> {
        let answer = self.net.reached(self.number, to)?.append(question).await;
        // The question has arrived; its answer goes the other way.
        self.net.reached(to, self.number).map(|_| answer)
    }

    async fn vote(&self, to: u64, question: AskVote) -> Result<VoteOutcome, LineError> {
        let answer = self.net.reached(self.number, to)?.vote(question).await;
        self.net.reached(to, self.number).map(|_| answer)
    }
}
