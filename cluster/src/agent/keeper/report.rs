//! `keeper.json`: where this host stands among the keepers, for `cluster status`.
use crate::ledger::place::write_atomically;
use crate::ledger::replica::Keeper;
use crate::ledger::{LedgerError, RunPaths};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// A keeper as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeeperReport {
    /// Its number.
    pub(crate) number: u64,
    /// Where each of them is asked by the others.
    pub(crate) keepers: Vec<SocketAddr>,
    /// Who leads; nothing: nobody, or nobody that this one hears of.
    pub(crate) leader: Option<u64>,
    /// In which of Raft's terms.
    pub(crate) term: u64,
    /// Entries of the log that this one's ledger has.
    pub(crate) entries: u64,
    /// Process.
    pub(crate) pid: u32,
}

impl KeeperReport {
    /// Of this host; `None` where it keeps nothing with others.
    ///
    /// # Errors
    /// The file is there and cannot be read, or is none of these.
    pub(crate) fn read(paths: &RunPaths) -> std::io::Result<Option<Self>> {
        match std::fs::read(paths.keeper_status()) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(std::io::Error::other),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let Self { number, keepers, leader, term, entries, .. } = self;
        let at = |n: &u64| usize::try_from(*n).ok().and_then(|n| keepers.get(n));
        let who = match leader {
            Some(leader) if leader == number => "which leads and runs the run".to_owned(),
            Some(leader) => format!("keeper {leader}{} leads", at(leader).map_or_else(String::new, |at| format!(" at {at}"))),
            None => "nobody is known to lead".to_owned(),
        };
        format!("keeper {number} of {}: {who} (term {term}, {entries} entries)", keepers.len())
    }
}

/// Writes it whenever it has changed, until it is aborted.
pub(super) async fn write(keeper: Keeper, paths: RunPaths, number: u64, keepers: Vec<SocketAddr>) {
    let mut look = tokio::time::interval(LOOK);
    let mut last = None;
    loop {
        look.tick().await;
        let now = keeper.standing();
        let (leader, term, entries, pid) = (now.leader, now.term, now.applied, std::process::id());
        let report = KeeperReport { number, keepers: keepers.clone(), leader, term, entries, pid };
        if last.as_ref() != Some(&report) {
            let written = serde_json::to_vec(&report).map_err(|e| LedgerError::io("write", &paths.keeper_status(), e.into()));
            if let Err(error) = written.and_then(|bytes| write_atomically(&paths.keeper_status(), &bytes)) {
                // A report: the keeper's work does not hang on it.
                tracing::warn!(target: "cohort::keeper", %error, "keeper_json_not_written");
            }
            last = Some(report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_leads() {
        let keepers = ["10.0.0.1:7404", "10.0.0.2:7404", "10.0.0.3:7404"].map(|at| at.parse().unwrap()).to_vec();
        let follows = KeeperReport { number: 1, keepers, leader: Some(2), term: 3, entries: 40, pid: 7 };
        assert_eq!(follows.line(), "keeper 1 of 3: keeper 2 at 10.0.0.3:7404 leads (term 3, 40 entries)");
        let leads = KeeperReport { leader: Some(1), ..follows.clone() };
        assert!(leads.line().contains("which leads"), "{}", leads.line());
        assert!(KeeperReport { leader: None, ..follows }.line().contains("nobody"));
    }
}
