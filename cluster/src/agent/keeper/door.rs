//! Questions of the other keepers, and of hosts that joined the run.
use super::hosts::{self, Led};
use crate::ledger::replica::Keeper;
use cohort_actors::certs;
use cohort_actors::{AcceptTerms, Connection, Listener, PeerLink, PeerSender, accept_worker};
use cohort_protocol::Role;
use cohort_protocol::messages::keepers::{Appended, AskerToKeeper, KeeperToAsker, Voted};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// For a keeper that connected to say whose log it has.
const STORE: Duration = Duration::from_secs(5);

/// Who is answered, and by what.
pub(super) struct Door {
    pub(super) terms: AcceptTerms,
    pub(super) keeper: Keeper,
    pub(super) led: Arc<Led>,
    /// Where this host's certificates are, and what it knows of those that were taken away.
    pub(super) certs: PathBuf,
}

/// Answers keepers and hosts, each in a task of its own, until it is aborted or the listener ends.
pub(super) async fn serve(listener: Arc<dyn Listener>, door: Door) {
    let door = Arc::new(door);
    let mut sessions = JoinSet::new();
    while let Ok(connection) = listener.accept().await {
        while sessions.try_join_next().is_some() {}
        sessions.spawn(session(connection, door.clone()));
    }
}

async fn session(connection: Arc<dyn Connection>, door: Arc<Door>) {
    let Door { terms, keeper, led, certs } = door.as_ref();
    let admitted = match accept_worker(connection, terms, |_| Ok(())).await {
        Ok(admitted) => admitted,
        Err(error) => return tracing::warn!(target: "cohort::keeper", %error, "not_welcomed"),
    };
    let who = admitted.worker();
    if who.role == Role::Node {
        return hosts::attend(admitted.into_link(), keeper, led).await;
    }
    let link: PeerLink<AskerToKeeper, KeeperToAsker> = admitted.into_link();
    if let Err(why) = introduce(&link, keeper).await {
        tracing::warn!(target: "cohort::keeper", %who, why, "not_welcomed");
        return link.close(&why);
    }
    let mut answering = JoinSet::new();
    while let Ok((question, ack)) = link.recv().await {
        while answering.try_join_next().is_some() {}
        ack.into_iter().for_each(cohort_actors::Ack::accept);
        match question {
            AskerToKeeper::Revoked(hosts) => learn(certs, &hosts),
            question => drop(answering.spawn(answer(question, keeper.clone(), link.sender()))),
        }
    }
}

/// Hosts that were let go by whoever led: they are let go here too.
fn learn(certs: &Path, hosts: &[u16]) {
    for host in hosts {
        if let Err(error) = certs::revoke(certs, *host) {
            // Told again over the next connection.
            tracing::error!(target: "cohort::keeper", host, %error, "revocation_not_kept");
        }
    }
}

/// Both say whose log they have, and neither speaks to one that was lost and begun again.
async fn introduce(link: &PeerLink<AskerToKeeper, KeeperToAsker>, keeper: &Keeper) -> Result<(), String> {
    let first = timeout(STORE, link.recv()).await.map_err(|_| "it did not say whose log it has".to_owned())?;
    let AskerToKeeper::Store(store) = first.map_err(|e| e.to_string())?.0 else {
        return Err("it asked before it said whose log it has".to_owned());
    };
    if store.keeper != u64::from(link.hello().worker.index) {
        return Err(format!("{} has the log of keeper {}", link.hello().worker, store.keeper));
    }
    if !keeper.knows(store).await.map_err(|e| e.to_string())? {
        return Err(format!("keeper {} has lost its log and begun another: it has no part in this run any more", store.keeper));
    }
    link.sender().send(&KeeperToAsker::Store(keeper.own_store())).await.map_err(|e| e.to_string())
}

async fn answer(question: AskerToKeeper, keeper: Keeper, sender: PeerSender<KeeperToAsker>) {
    let answer = match question {
        AskerToKeeper::Append(question) => {
            let id = question.id;
            KeeperToAsker::Appended(Appended { id, outcome: keeper.append(question).await })
        }
        AskerToKeeper::Vote(question) => KeeperToAsker::Voted(Voted { id: question.id, outcome: keeper.vote(question).await }),
        AskerToKeeper::Store(_) | AskerToKeeper::Revoked(_) => KeeperToAsker::Store(keeper.own_store()),
    };
    if let Err(error) = sender.send(&answer).await {
        // Who asked asks again.
        tracing::debug!(target: "cohort::keeper", %error, "not_answered");
    }
}
