//! Which workers this host runs, and their certificates: the key is made here, its public half is certified by the head node, and
//! renewed when that says so.
use super::Joined;
use crate::agent::children;
use crate::agent::join_error::{JoinError, system};
use cohort_actors::ChildId;
use cohort_actors::certs::{Identity, SigningKey};
use cohort_protocol::messages::node::{Certificate, CertificateRequest, NodeToHead};
use cohort_protocol::{Role, WorkerId};
use std::collections::BTreeSet;

impl Joined<'_> {
    /// A certificate that was asked for, or word that a new one is to be asked for.
    pub(super) async fn certified(&mut self, certificate: Certificate) -> Result<(), JoinError> {
        let who = certificate.worker;
        if certificate.der.is_empty() {
            return self.renew(who).await;
        }
        let Some(key) = self.keys.remove(&who) else { return Ok(()) };
        let identity = Identity::assemble(self.run, who, &self.authority, certificate.der, &key)?;
        identity.save(&children::certificates(&self.paths))?;
        // One that runs shows its new certificate from the next handshake on.
        if who.role != Role::Node && !self.workers.contains(&who) {
            self.start(who).await?;
        }
        Ok(())
    }

    /// Starts and stops workers until these are the ones that run here.
    pub(super) async fn assign(&mut self, workers: Vec<WorkerId>) -> Result<(), JoinError> {
        let wanted: BTreeSet<WorkerId> = workers.into_iter().collect();
        let gone: Vec<WorkerId> = self.workers.difference(&wanted).copied().collect();
        for who in gone {
            self.workers.remove(&who);
            self.supervisor.remove(ChildId::from(who.to_string())).await;
            self.site.iter().for_each(|site| site.children.gone(who));
        }
        self.keys.retain(|who, _| who.role == Role::Node || wanted.contains(who));
        for who in wanted {
            if !self.workers.contains(&who) && !self.keys.contains_key(&who) {
                let key = SigningKey::generate()?;
                let public_key = key.public();
                self.keys.insert(who, key);
                self.say(NodeToHead::Certify(CertificateRequest { worker: who, public_key })).await;
            }
        }
        Ok(())
    }

    /// Asks for a new certificate, with a new key, for this host or a worker that it runs.
    async fn renew(&mut self, who: WorkerId) -> Result<(), JoinError> {
        if who.role == Role::Node || self.workers.contains(&who) {
            let key = SigningKey::generate()?;
            let public_key = key.public();
            self.keys.insert(who, key);
            self.say(NodeToHead::Certify(CertificateRequest { worker: who, public_key })).await;
        }
        Ok(())
    }

    async fn start(&mut self, who: WorkerId) -> Result<(), JoinError> {
        let Some(site) = &self.site else { return Ok(()) };
        let spec = site.children.spec(who).map_err(|error| system("start a worker")(std::io::Error::other(error)))?;
        self.supervisor.add(spec).await;
        self.workers.insert(who);
        Ok(())
    }
}
