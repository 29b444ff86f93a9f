//! Questions of hosts that joined the run and look for its head node.
use crate::agent::control::Place;
use crate::ledger::RunPaths;
use crate::ledger::replica::Keeper;
use cohort_actors::PeerLink;
use cohort_protocol::messages::seeking::{KeeperToNode, NodeToKeeper, WhoLeads};
use std::sync::atomic::{AtomicU32, Ordering};

/// The run's program on this host, while this host leads.
#[derive(Debug)]
pub(super) struct Led {
    paths: RunPaths,
    /// Its process; 0: there is none.
    child: AtomicU32,
}

impl Led {
    pub(super) fn new(paths: RunPaths) -> Self {
        Self { paths, child: AtomicU32::new(0) }
    }

    /// It runs as this process from now on, or no more.
    pub(super) fn runs_as(&self, pid: Option<u32>) {
        self.child.store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    /// Where it takes hosts in, once it does. What an earlier program has left behind does not count.
    fn listens(&self) -> Option<String> {
        let pid = self.child.load(Ordering::Relaxed);
        let place = Place::read(&self.paths).ok().filter(|place| pid != 0 && place.pid == pid)?;
        place.listen.map(|at| at.to_string())
    }
}

/// Answers one host until it leaves.
pub(super) async fn attend(link: PeerLink<NodeToKeeper, KeeperToNode>, keeper: &Keeper, led: &Led) {
    let sender = link.sender();
    while let Ok((NodeToKeeper::WhoLeads(id), _)) = link.recv().await {
        let now = keeper.standing();
        let listens = if now.leads { led.listens() } else { None };
        let answer = KeeperToNode::Leads(WhoLeads { id, term: now.term, keeper: now.leader, listens });
        if let Err(error) = sender.send(&answer).await {
            // It asks again, here or elsewhere.
            return tracing::debug!(target: "cohort::keeper", %error, "host_not_answered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_program_that_runs_now_says_where_hosts_come_in() {
        let folder = tempfile::tempdir().unwrap();
        let led = Led::new(RunPaths::new(folder.path()));
        assert_eq!(led.listens(), None, "nothing runs");
        let place = Place { socket: "name".into(), pid: 7, listen: Some("0.0.0.0:7400".parse().unwrap()) };
        place.write(&led.paths).unwrap();
        assert_eq!(led.listens(), None, "that is what another left behind");
        led.runs_as(Some(8));
        assert_eq!(led.listens(), None, "and so it is while the next one begins");
        led.runs_as(Some(7));
        assert_eq!(led.listens().as_deref(), Some("0.0.0.0:7400"));
        Place { listen: None, ..place }.write(&led.paths).unwrap();
        assert_eq!(led.listens(), None, "a run that keeps to its host");
        led.runs_as(None);
        assert_eq!(led.listens(), None);
    }
}
